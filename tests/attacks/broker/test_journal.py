"""Attacks 40, 51 and 52 (docs/threat-model.md): the journal under a full disk, SIGKILL, and people who edit it."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gatepass.errors import ConfigurationError
from gatepass_broker.events import Issued
from gatepass_broker.journal import Journal, JournalError, check_journal, segments
from gatepass_broker.keys import SigningKey
from gatepass_broker.settings import JournalLimits
from support.broker import BrokerProcess, RawClient, ask, error_code, running_broker

LIMITS = JournalLimits(segment_bytes=2**20, keep_segments=8)


def issued(number: int) -> Issued:
    return Issued(
        time=1_800_000_000.5 + number,
        jti=f"jti-{number}",
        sub="s",
        aud="a",
        scope="",
        exp=1,
        uid=1,
        gid=1,
        pid=1,
        rule="r",
    )


def lines(directory: Path) -> list[dict[str, Any]]:
    found = (path.read_text().splitlines() for path in sorted(directory.glob("*.jsonl")))
    return [json.loads(line) for part in found for line in part]


def write_journal(directory: Path, records: int, limits: JournalLimits = LIMITS) -> None:
    """Write as the broker does: events applied to the state, checkpoints where they are due."""
    directory.mkdir(exist_ok=True)
    journal, key = Journal(directory, limits), SigningKey(1_800_000_000.0, 3600)
    journal.append([key.added()])
    journal.state.apply(key.added())
    for number in range(records):
        if journal.is_due:
            journal.checkpoint(journal.state.checkpoint(1.0, key.kid), key.sign)
        journal.append([issued(number)])
        journal.state.apply(issued(number))
    journal.checkpoint(journal.state.checkpoint(2.0, key.kid), key.sign)
    journal.close()


def rewrite(directory: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = directory / "00000001.jsonl"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "changed": lambda found: [line.replace(b"jti-3", b"jti-X") for line in found],
    "removed": lambda found: found[:4] + found[5:],
    "moved": lambda found: [*found[:3], found[4], found[3], *found[5:]],
    "doubled": lambda found: [*found[:4], found[3], *found[4:]],
    "first_removed": lambda found: found[1:],
    "not_json": lambda found: [*found[:4], b"garbage\n", *found[4:]],
    "signature_changed": lambda found: [*found[:-1], found[-1].replace(b'"signature":"', b'"signature":"A')],
}


@pytest.mark.parametrize("name", CHANGES)
def test_52_an_edited_journal_is_found_and_nothing_starts_on_it(tmp_path: Path, name: str) -> None:
    write_journal(tmp_path / "j", 10)
    assert check_journal(tmp_path / "j").problem == ""
    rewrite(tmp_path / "j", CHANGES[name])

    report = check_journal(tmp_path / "j")
    assert "00000001.jsonl, line" in report.problem
    with pytest.raises(ConfigurationError, match=r"move .* elsewhere"):
        Journal(tmp_path / "j", LIMITS)


def test_52_segments_follow_each_other(tmp_path: Path) -> None:
    directory = tmp_path / "j"
    write_journal(directory, 200, JournalLimits(segment_bytes=4_096, keep_segments=100))
    report = check_journal(directory)
    assert report.segments > 5
    assert report.problem == ""
    assert report.records == len(lines(directory))

    (directory / "00000003.jsonl").unlink()
    assert "00000004.jsonl: the segment before it is missing" in check_journal(directory).problem


def test_52_a_whole_segment_swapped_for_an_older_one(tmp_path: Path) -> None:
    directory = tmp_path / "j"
    write_journal(directory, 200, JournalLimits(segment_bytes=4_096, keep_segments=100))
    shutil.copy(directory / "00000002.jsonl", directory / "00000004.jsonl")

    assert "00000004.jsonl, line 1" in check_journal(directory).problem


def test_old_segments_go_and_the_state_stays(tmp_path: Path) -> None:
    directory = tmp_path / "j"
    write_journal(directory, 500, JournalLimits(segment_bytes=4_096, keep_segments=3))

    assert len(segments(directory)) == 3
    assert check_journal(directory).problem == ""
    journal = Journal(directory, LIMITS)
    assert journal.state.issued == 500
    assert len(journal.state.keys) == 1
    journal.close()


def test_two_brokers_cannot_write_one_journal(tmp_path: Path) -> None:
    write_journal(tmp_path / "j", 1)
    first = Journal(tmp_path / "j", LIMITS)
    with pytest.raises(ConfigurationError, match="another broker writes this journal"):
        Journal(tmp_path / "j", LIMITS)
    first.close()
    Journal(tmp_path / "j", LIMITS).close()


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_51_a_half_written_record_is_cut_off(tmp_path: Path, kept: int) -> None:
    write_journal(tmp_path / "j", 5)
    path = tmp_path / "j" / "00000001.jsonl"
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole[: -len(last)] + last[:kept])

    journal = Journal(tmp_path / "j", LIMITS)
    assert journal.cut == len(last[:kept])
    journal.append([issued(99)])
    journal.close()
    assert check_journal(tmp_path / "j").problem == ""


def test_51_a_crash_between_a_segment_and_its_checkpoint(tmp_path: Path) -> None:
    write_journal(tmp_path / "j", 5)
    (tmp_path / "j" / "00000002.jsonl").write_bytes(b'{"seq":')

    journal = Journal(tmp_path / "j", LIMITS)
    assert journal.state.issued == 5
    journal.close()
    assert segments(tmp_path / "j") == [1]


async def test_51_a_crash_with_a_full_segment(tmp_path: Path) -> None:
    """The next run must not begin a segment with a checkpoint by a key that the journal has not shown."""
    directory = tmp_path / "state" / "journal"
    directory.mkdir(parents=True, mode=0o700)
    (tmp_path / "state").chmod(0o700)
    journal, key = Journal(directory, LIMITS), SigningKey(1_800_000_000.0, 3600)
    journal.append([key.added(), *(issued(number) for number in range(50))])
    journal.close()

    async with running_broker(tmp_path, journal={"segment_bytes": 4_096}) as broker:
        assert (await broker.ask(op="status"))["issued"] == 50
    assert check_journal(directory).problem == ""
    assert segments(directory) == [1, 2]


class FullDisk:
    """Takes part of a write, then none, until there is room again."""

    def __init__(self, taken: int, fault: int = errno.ENOSPC) -> None:
        self.taken = taken
        self.fault = fault
        self.full = True
        self._write = os.write

    def __call__(self, descriptor: int, data: bytes) -> int:
        if not self.full or b'"seq":' not in data:
            return self._write(descriptor, data)
        if self.taken:
            return self._write(descriptor, data[: self.taken])
        self.refuse(descriptor)
        raise AssertionError

    def refuse(self, descriptor: int) -> None:
        raise OSError(self.fault, os.strerror(self.fault))


@pytest.mark.parametrize(("taken", "fault"), [(0, errno.ENOSPC), (0, errno.EIO), (10, errno.ENOSPC)])
async def test_52_nothing_is_issued_while_the_journal_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int, fault: int
) -> None:
    async with running_broker(tmp_path) as broker:
        assert (await broker.ask(op="issue"))["ok"]
        disk = FullDisk(taken, fault)
        monkeypatch.setattr(os, "write", disk)
        for request in ({"op": "issue"}, {"op": "issue", "ttl": 99_999}):
            reply = await broker.ask(**request)
            assert error_code(reply) == "unavailable"
            assert f"cannot be written: {os.strerror(fault)}; nothing is issued" in reply["error"]["message"]
            assert reply["error"]["retry_after"] > 0
        assert (await broker.ask(op="whoami"))["ok"]
        assert (await broker.ask(op="status"))["issued"] == 1
        disk.full = False
        assert (await broker.ask(op="issue"))["ok"]

    report = check_journal(tmp_path / "state" / "journal")
    assert report.problem == ""
    assert sum(line["event"] == "issued" for line in lines(tmp_path / "state" / "journal")) == 2


async def test_52_a_rotation_that_cannot_be_recorded_does_not_happen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_broker(tmp_path, broker={"key_lifetime": 200}) as broker:
        before = broker.server.broker.follow_message()
        broker.clock.pass_time(150)
        disk = FullDisk(0)
        monkeypatch.setattr(os, "write", disk)
        with pytest.raises(JournalError):
            broker.server.broker.turn_keys()
        assert broker.server.broker.follow_message() == before
        disk.full = False
        broker.server.broker.turn_keys()
        assert len(broker.server.broker.follow_message()["keys"]) == 2


async def test_52_a_lock_holds_on_a_full_disk_and_is_on_the_record_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(0)
    async with running_broker(tmp_path) as broker:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", disk)
            assert error_code(await broker.ask(op="issue")) == "unavailable"
            for request in ({"op": "lock"}, {"op": "lock"}, {"op": "revoke", "by": "all"}):
                reply = await broker.ask(**request)
                assert (reply["ok"], reply["recorded"]) == (True, False)
            assert error_code(await broker.ask(op="unlock")) == "unavailable"
            assert (await broker.ask(op="status"))["locked"] is True
            assert "not on the record" in broker.server.status
            with pytest.raises(JournalError):
                broker.server.broker.turn_keys()
        broker.server.broker.turn_keys()  # which is asked each minute
        assert "not on the record" not in broker.server.status
        assert (await broker.ask(op="lock"))["recorded"] is True

    journal = tmp_path / "state" / "journal"
    assert check_journal(journal).problem == ""
    assert [line["event"] for line in lines(journal) if line["event"] in ("locked", "revoked")] == ["locked", "revoked"]
    async with running_broker(tmp_path) as broker:
        assert error_code(await broker.ask(op="issue")) == "locked"
        standing = broker.server.broker.state.standing
        assert (standing.locked, [revocation.by for revocation in standing.revocations]) == (True, ["all"])


async def test_52_a_lock_goes_onto_the_record_before_anything_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_broker(tmp_path) as broker:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", FullDisk(0))
            await broker.ask(op="lock")
            patch.setattr("gatepass_broker.service.MAX_UNRECORDED", 1)
            assert error_code(await broker.ask(op="revoke", by="all")) == "unavailable"
        assert error_code(await broker.ask(op="issue")) == "locked"
        assert (await broker.ask(op="unlock"))["recorded"] is True
        assert (await broker.ask(op="issue"))["ok"]
    journal = tmp_path / "state" / "journal"
    assert check_journal(journal).problem == ""
    happened = [
        line["event"] for line in lines(journal) if line["event"] in ("locked", "refused", "unlocked", "issued")
    ]
    assert happened == ["locked", "refused", "unlocked", "issued"]


def test_52_a_sync_that_fails_leaves_no_half_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_journal(tmp_path / "j", 3)
    journal, key = Journal(tmp_path / "j", LIMITS), SigningKey(1.0, 3600)
    journal.append([key.added()])
    journal.state.apply(key.added())

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    checkpoint = journal.state.checkpoint(1.0, key.kid)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(JournalError):
            journal.checkpoint(checkpoint, key.sign)
    journal.append([issued(4)])
    journal.checkpoint(journal.state.checkpoint(1.0, key.kid), key.sign)
    journal.close()
    assert check_journal(tmp_path / "j").problem == ""


def test_52_a_segment_that_cannot_be_begun_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_journal(tmp_path / "j", 40)
    journal, key = Journal(tmp_path / "j", JournalLimits(4_096, 8)), SigningKey(1.0, 3600)
    journal.append([key.added()])
    journal.state.apply(key.added())
    checkpoint = journal.state.checkpoint(1.0, key.kid)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", FullDisk(0).refuse)
        with pytest.raises(JournalError, match="No space left"):
            journal.checkpoint(checkpoint, key.sign)
    assert segments(tmp_path / "j") == [1]
    journal.checkpoint(checkpoint, key.sign)
    journal.append([issued(41)])
    journal.close()
    assert segments(tmp_path / "j") == [1, 2]
    assert check_journal(tmp_path / "j").problem == ""


def test_52_a_real_full_disk(tmp_path: Path) -> None:
    """The kernel itself refuses (RLIMIT_FSIZE): half a record may be written, and is taken back."""

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))

    broker = BrokerProcess(tmp_path)
    try:
        broker.start(preexec_fn=small_files)
        with RawClient(broker.socket) as client:
            replies = [client.ask(op="issue") for _ in range(40)]
            assert client.ask(op="status")["issued"] == sum(reply["ok"] for reply in replies)
        assert replies[0]["ok"]
        assert error_code(replies[-1]) == "unavailable"
        broker.kill()
    finally:
        broker.__exit__(None, None, None)
    report = check_journal(tmp_path / "state" / "journal")
    assert report.problem == ""
    recorded = sum(line["event"] == "issued" for line in lines(tmp_path / "state" / "journal"))
    assert recorded == sum(reply["ok"] for reply in replies)


def test_51_sigkill_at_any_moment_loses_no_issued_token(tmp_path: Path) -> None:
    """Whatever a client was given is on the record, the chain holds, and the next run goes on from it."""
    given: list[str] = []
    broker = BrokerProcess(tmp_path, journal={"segment_bytes": 8_192, "keep_segments": 1000})

    def hammer() -> None:
        try:
            with RawClient(broker.socket) as client:
                while True:
                    given.append(client.ask(op="issue")["token"])
        except (OSError, AssertionError):
            pass

    for delay in (0.05, 0.11, 0.17):
        broker.start()
        threads = [threading.Thread(target=hammer) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(delay)
        broker.kill()
        for thread in threads:
            thread.join()
    with broker:
        assert ask(broker.socket, op="verify", token=given[-1])["ok"]
        assert ask(broker.socket, op="status")["issued"] >= len(given)
        assert broker.stop() == 0
    report = check_journal(tmp_path / "state" / "journal")
    assert report.problem == ""
    recorded = {line["jti"] for line in lines(tmp_path / "state" / "journal") if line["event"] == "issued"}
    assert {token_id(token) for token in given} <= recorded


def token_id(token: str) -> str:
    from gatepass.tokens import b64decode

    claims: dict[str, str] = json.loads(b64decode(token.split(".")[1]))
    return claims["jti"]


def test_files_of_the_broker_are_its_own(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path) as broker:
        state = tmp_path / "state"
        modes = {path.relative_to(state): path.stat().st_mode & 0o777 for path in state.rglob("*")}
        assert set(modes.values()) == {0o700, 0o600}, modes
        broker.stop()
