"""What is learned of real processes by their pidfds, and by pids where that has to do."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatepass_broker import pidfd as pidfds
from gatepass_broker.pidfd import Held, boottime, hold_by_pid

TICK = 10**9 // os.sysconf("SC_CLK_TCK")
LONG_AFTER = 3 * TICK


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def own() -> Iterator[int]:
    pidfd = os.pidfd_open(os.getpid())
    yield pidfd
    os.close(pidfd)


def test_a_process_that_began_before_the_connection_is_held(child: subprocess.Popen[bytes]) -> None:
    held = hold_by_pid(child.pid, boottime() + LONG_AFTER)
    assert held.pidfd is not None
    assert held == Held(held.pidfd)
    assert pidfds.visible_as(held.pidfd) == child.pid
    os.close(held.pidfd)


def test_13_one_that_may_have_begun_after_it_is_not(child: subprocess.Popen[bytes]) -> None:
    """Its start is known to the tick: a connection that was made within that tick may have been another's."""
    pidfd = os.pidfd_open(child.pid)
    begun_by = pidfds._begun_by(pidfd, child.pid)
    os.close(pidfd)
    assert begun_by is not None
    for absent_at in (None, 0, begun_by - 2 * TICK, begun_by - TICK, begun_by):
        assert hold_by_pid(child.pid, absent_at) == Held(unsettled=True)
    held = hold_by_pid(child.pid, begun_by + 1)
    assert held.pidfd is not None
    os.close(held.pidfd)


def test_the_start_is_between_what_was_before_and_after_it() -> None:
    """On the clock of the boot, which goes on in sleep."""
    before = boottime()
    with subprocess.Popen(["sleep", "60"]) as process:
        after = boottime()
        pidfd = os.pidfd_open(process.pid)
        begun_by = pidfds._begun_by(pidfd, process.pid)
        os.close(pidfd)
        process.kill()
    assert begun_by is not None
    assert before < begun_by <= after + 2 * TICK


@pytest.mark.parametrize("waited_for", [False, True])
def test_14_a_process_that_has_ended_is_gone(child: subprocess.Popen[bytes], waited_for: bool) -> None:
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | (0 if waited_for else os.WNOWAIT))
    assert hold_by_pid(child.pid, boottime() + LONG_AFTER) == Held(gone=True)


@pytest.mark.parametrize(
    ("error", "held"),
    [
        (errno.ESRCH, Held(gone=True)),
        (errno.EINVAL, Held(gone=True)),
        (errno.ENOSYS, Held()),
        (errno.EPERM, Held()),
    ],
)
def test_21_pidfd_open_fails(error: int, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(pid: int) -> int:
        raise OSError(error, "")

    monkeypatch.setattr(os, "pidfd_open", fail)
    assert hold_by_pid(os.getpid(), boottime()) == held


def test_21_without_a_descriptor_nobody_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(pid: int) -> int:
        raise OSError(errno.EMFILE, "")

    monkeypatch.setattr(os, "pidfd_open", fail)
    with pytest.raises(OSError, match="24"):
        hold_by_pid(os.getpid(), boottime())


def test_where_the_start_is_hidden_the_process_stays_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with hidepid: to connect again would change nothing."""
    monkeypatch.setattr(pidfds, "_read", lambda name: None)
    assert hold_by_pid(os.getpid(), boottime() + LONG_AFTER) == Held()


@pytest.mark.parametrize("step", ["_begun_by", "has_exited"])
def test_20_no_descriptor_is_left_by_a_step_that_fails(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EPERM, "")

    before = descriptors()
    monkeypatch.setattr(pidfds, step, refuse)
    for _ in range(5):
        with pytest.raises(PermissionError):
            hold_by_pid(os.getpid(), boottime())
    monkeypatch.undo()
    assert descriptors() == before
    hold_by_pid(os.getpid(), None)
    assert descriptors() == before


HOSTILE = [") 1 (", "a b c) R 1 1 1 1", "(((", ")", "0::/system.slice", "x\ny) S 0 0", "openclaw.serv", "\xff)"]


@pytest.mark.parametrize("name", HOSTILE)
def test_18_a_programs_name_does_not_change_when_it_began(name: str, own: int) -> None:
    honest = pidfds._begun_by(own, os.getpid())
    libc = ctypes.CDLL(None)
    before = Path("/proc/self/comm").read_bytes().rstrip(b"\n")
    libc.prctl(15, name.encode(), 0, 0, 0)  # PR_SET_NAME
    try:
        assert Path("/proc/self/comm").read_bytes().rstrip(b"\n") == name.encode()[:15]
        assert pidfds._begun_by(own, os.getpid()) == honest
        assert pidfds.cgroup_path(os.getpid()) == pidfds.cgroup_path(os.getppid())
    finally:
        libc.prctl(15, before, 0, 0, 0)


def test_the_cgroup_line_of_version_2_counts_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        b"12:pids:/a\n1:name=systemd:/b 0::/c\n0::/system.slice/d:0::.service\n": "/system.slice/d:0::.service",
        b"1:name=systemd:/system.slice\n": None,
        b"0::\n": None,
        b"0::relative\n": None,
        b"10::/a\n": None,
        b"": None,
        b"0::/\xff\n": "/\udcff",
    }
    for content, path in files.items():
        monkeypatch.setattr(pidfds, "_read", lambda name, content=content: content)
        assert pidfds.cgroup_path(1) == path


@pytest.mark.parametrize(
    ("lines", "seen"),
    [
        (b"Pid:\t12\nNSpid:\t12\n", (12, False)),
        (b"Pid:\t12\nNSpid:\t12\t3\n", (12, True)),
        (b"Pid:\t12\nNSpid:\t12\t3\t1\n", (12, True)),
        (b"Pid:\t0\nNSpid:\t0\n", None),
        (b"Pid:\t-1\nNSpid:\t-1\n", None),
        (b"Pid:\t12\n", None),
        (b"Pid:\t12\nNSpid:\t13\n", None),
        (b"Pid:\t1\nNSpid:\t12\n", None),
        (b"", None),
    ],
)
def test_the_pids_in_each_namespace(
    lines: bytes, seen: tuple[int, bool] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pidfds, "_read", lambda name: b"pos:\t0\nflags:\t02000002\nmnt_id:\t4\nino:\t70\n" + lines)
    assert pidfds._seen(9) == seen
    assert pidfds.is_nested(9, 12) == (seen[1] if seen else None)
    assert pidfds.is_nested(9, 11) is None


def test_this_process_is_seen_as_itself(own: int) -> None:
    assert (pidfds.visible_as(own), pidfds.is_nested(own, os.getpid())) == (os.getpid(), False)


def test_a_process_that_was_waited_for_is_not_seen(child: subprocess.Popen[bytes]) -> None:
    pidfd = os.pidfd_open(child.pid)
    child.kill()
    child.wait()
    assert (pidfds.visible_as(pidfd), pidfds.is_nested(pidfd, child.pid)) == (None, None)
    os.close(pidfd)


def test_what_is_no_pidfd_tells_nothing() -> None:
    with Path("/dev/null").open() as file:
        assert (pidfds.cgroup_id(file.fileno()), pidfds.visible_as(file.fileno())) == (None, None)
    assert (pidfds.cgroup_id(10**6), pidfds.visible_as(10**6)) == (None, None)


def test_the_id_that_the_kernel_tells_is_that_of_the_path_in_proc(own: int) -> None:
    """Both ways to learn a cgroup lead to the same one."""
    cgroup = pidfds.cgroup_id(own)
    if cgroup is None:
        pytest.skip("needs Linux 6.13")
    from gatepass.daemon.cgroups import CgroupTree

    path = pidfds.cgroup_path(os.getpid())
    tree = CgroupTree.of_this_machine()
    if path is None or tree.id("/") is None:
        pytest.skip("needs cgroup v2")
    assert tree.id(path) == cgroup
    assert tree.path(cgroup) == path
