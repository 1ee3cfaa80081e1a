"""Which process is meant: real ones, alive and ended."""

from __future__ import annotations

import errno
import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatepass.claims import Process
from gatepass.daemon import processes
from gatepass.daemon.processes import is_alive, open_process


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def named(pid: int) -> Process:
    """Return the process that has `pid` now."""
    pidfd = os.pidfd_open(pid)
    try:
        inode = processes.pidfs_inode(pidfd)
    finally:
        os.close(pidfd)
    if inode is None:
        pytest.skip("needs Linux 6.9 for pidfs")
    return Process(pid, inode)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_living_process_is_held_until_it_ends(child: subprocess.Popen[bytes]) -> None:
    pidfd = open_process(named(child.pid))
    assert pidfd is not None
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(0) == []
        child.kill()
        assert poll.poll(5_000)
    finally:
        os.close(pidfd)


def test_a_process_that_has_ended_is_not_alive_whether_waited_for_or_not(child: subprocess.Popen[bytes]) -> None:
    process = named(child.pid)
    assert is_alive(process)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(process)
    child.wait()
    assert not is_alive(process)


def test_13_another_process_with_the_same_pid_is_not_the_process(child: subprocess.Popen[bytes]) -> None:
    process = named(child.pid)
    assert not is_alive(process._replace(inode=process.inode + 1))
    assert not is_alive(process._replace(inode=named(os.getpid()).inode))


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 2**31 - 1, 2**40])
def test_a_pid_that_nobody_has_is_nobody(pid: int) -> None:
    assert open_process(Process(pid, 1)) is None


def test_before_linux_6_9_no_process_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """There all pidfds have one inode: whoever names that must not be alive."""
    process = named(os.getpid())
    pidfd = os.pidfd_open(os.getpid())
    device = os.fstat(pidfd).st_dev
    os.close(pidfd)
    monkeypatch.setattr(processes, "_anonymous_device", lambda: device)
    assert not is_alive(process)


@pytest.mark.parametrize("step", ["os.pidfd_open", "os.fstat", "gatepass.daemon.processes.has_exited"])
def test_20_a_step_that_fails_leaves_nobody_and_no_descriptor(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EPERM, "")

    process = named(os.getpid())
    before = descriptors()
    monkeypatch.setattr(step, refuse)
    alive = [is_alive(process) for _ in range(5)]
    monkeypatch.undo()
    assert (alive, descriptors()) == ([False] * 5, before)


def test_20_no_descriptor_is_left_by_looking() -> None:
    process = named(os.getpid())
    before = descriptors()
    for inode in (process.inode, process.inode + 1):
        is_alive(process._replace(inode=inode))
    assert descriptors() == before
