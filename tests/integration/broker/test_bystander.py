"""What an administrator is told of a process that does not itself connect."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatepass.daemon.cgroups import CgroupTree
from gatepass_broker import bystander
from gatepass_broker.bystander import caller_of_process
from gatepass_broker.places import Places
from support.broker import ask, in_thread, own_rule, running_broker

PLACES = Places(CgroupTree.of_this_machine())


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_process_is_seen_as_it_would_be_if_it_connected(sleeper: subprocess.Popen[bytes]) -> None:
    seen = caller_of_process(sleeper.pid, PLACES)

    assert seen is not None
    assert (seen.uid, seen.gid, seen.pid) == (os.geteuid(), os.getegid(), sleeper.pid)
    assert seen.groups == frozenset(os.getgroups())
    assert seen.process != (seen_of_ourselves := caller_of_process(os.getpid(), PLACES)).process  # type: ignore[union-attr]
    assert seen_of_ourselves is not None
    assert seen.cgroup == seen_of_ourselves.cgroup


@pytest.mark.root
def test_it_is_the_effective_user_that_counts() -> None:
    with subprocess.Popen(["sleep", "60"], user=12_345, group=54_321, extra_groups=[7, 9]) as process:
        try:
            seen = caller_of_process(process.pid, PLACES)
        finally:
            process.kill()
    assert seen is not None
    assert (seen.uid, seen.gid, seen.groups) == (12_345, 54_321, frozenset({7, 9}))


@pytest.mark.parametrize("pid", [2**22 + 1, 2**31 - 1])
def test_a_process_that_is_not_there_is_nobody(pid: int) -> None:
    assert caller_of_process(pid, PLACES) is None


def test_a_process_that_has_ended_is_nobody(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert caller_of_process(sleeper.pid, PLACES) is None


def test_a_process_that_ends_while_it_is_looked_at_is_nobody(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read by the pid may be of the process that has it since."""
    find = PLACES.find

    def find_and_end(pidfd: int, pid: int) -> object:
        place = find(pidfd, pid)
        sleeper.kill()
        sleeper.wait()
        return place

    monkeypatch.setattr(PLACES, "find", find_and_end)
    assert caller_of_process(sleeper.pid, PLACES) is None


def test_a_name_cannot_pass_for_a_line_of_its_own(tmp_path: Path) -> None:
    program = tmp_path / "Uid:\t0 0 0 0"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        try:
            seen = caller_of_process(process.pid, PLACES)
        finally:
            process.kill()
    assert seen is not None
    assert seen.uid == os.geteuid()


def test_no_descriptor_is_left_open(sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    caller_of_process(sleeper.pid, PLACES)
    monkeypatch.setattr(bystander, "_numbers", lambda *_: [])
    assert caller_of_process(sleeper.pid, PLACES) is None
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_explain_for_another_process_says_what_it_would_get(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    async with running_broker(tmp_path, rules=[own_rule(scopes=["operator.read"])]) as broker:
        answer = await in_thread(lambda: ask(broker.socket, op="explain", pid=sleeper.pid))
        assert answer["caller"]["pid"] == sleeper.pid
        assert answer["decision"]["allowed"] is True
        sleeper.kill()
        sleeper.wait()
        gone = await broker.ask(op="explain", pid=sleeper.pid)
        assert gone["error"]["message"] == f"there is no process {sleeper.pid}"
