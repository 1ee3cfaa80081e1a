"""Revoking and locking over the socket: followers are told, the answer waits for them, a restart forgets nothing."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from gatepass.frames import Message, encode_frame
from gatepass.sessions import Session, record_to_wire
from support.broker import RawClient, TestBroker, error_code, in_thread, own_rule, running_broker


def session(number: str, **changes: Any) -> Message:
    value = Session(number, "websocket", "token", "d@e", 1000, None, f"jti-{number}", "", 1, "cli")
    return record_to_wire(value._replace(**changes))


class Follower:
    """A gateway that reports what a test says."""

    def __init__(self, client: RawClient, name: str) -> None:
        self.client = client
        self.told = client.ask(op="follow", name=name)

    def report(self, **report: Any) -> None:
        assert self.client.ask(op="report", seq=self.told["seq"], **report)["ok"]

    def act(self, **report: Any) -> Message:
        """Take the next thing that is told, and say that it is carried out."""
        message = self.client.receive()
        assert message is not None
        self.told = message
        self.report(**report)
        return message


@contextmanager
def following(socket: Path, name: str = "gateway") -> Iterator[Follower]:
    with RawClient(socket) as client:
        yield Follower(client, name)


@asynccontextmanager
async def broker_and_follower(directory: Path, **arguments: Any) -> AsyncIterator[tuple[TestBroker, Follower]]:
    async with running_broker(directory, **arguments) as broker:
        client = await in_thread(lambda: RawClient(broker.socket))
        with client:
            follower = await in_thread(lambda: Follower(client, "gateway"))
            await in_thread(follower.report)
            yield broker, follower


async def test_the_answer_to_a_revocation_waits_until_every_gateway_has_acted(tmp_path: Path) -> None:
    async with broker_and_follower(tmp_path) as (broker, follower):
        await in_thread(lambda: follower.report(opened=[session("a"), session("b")]))
        answers: list[Message] = []

        async def revoke() -> None:
            answers.append(await broker.ask(op="revoke", by="jti", value="jti-a"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(revoke)
            told = await in_thread(follower.client.receive)
            assert told["revocations"][0][:2] == ["jti", "jti-a"]
            assert answers == []
            follower.told = told
            await in_thread(lambda: follower.report(closed=["a"]))
        (answer,) = answers
        assert (answer["gateways"], answer["acted"], answer["waiting"], answer["ended"]) == (1, 1, [], 1)
        assert answer["seq"] == told["seq"]


async def test_requests_behind_a_revocation_are_answered_after_it_in_order(tmp_path: Path) -> None:
    async with broker_and_follower(tmp_path) as (broker, follower):

        def ask_three() -> list[Message | None]:
            with RawClient(broker.socket) as client:
                replies = []
                for number, op in enumerate(("lock", "status", "unlock"), 1):
                    client.send(frame(number, op))
                for _ in range(3):
                    replies.append(client.receive())
                return replies

        replies: list[Any] = []

        async def collect() -> None:
            replies.extend(await in_thread(ask_three))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collect)
            assert (await in_thread(follower.act))["locked"] is True
            assert (await in_thread(follower.act))["locked"] is False
        assert [reply["id"] for reply in replies] == [1, 2, 3]
        assert replies[1]["locked"] is True


def frame(number: int, op: str) -> bytes:
    return encode_frame({"v": 1, "id": number, "op": op})


async def test_without_gateways_a_revocation_is_answered_at_once(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as broker:
        answer = await broker.ask(op="revoke", by="all")
        assert (answer["gateways"], answer["acted"], answer["waiting"], answer["ended"]) == (0, 0, [], 0)


async def test_a_gateway_that_goes_is_not_waited_for_and_is_named(tmp_path: Path) -> None:
    async with broker_and_follower(tmp_path) as (broker, follower):
        answers: list[Message] = []

        async def lock() -> None:
            answers.append(await broker.ask(op="lock"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lock)
            await in_thread(follower.client.receive)
            follower.client.socket.close()
        assert (answers[0]["acted"], answers[0]["waiting"]) == (0, ["gateway"])


async def test_a_gateway_that_does_not_act_is_named_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatepass_broker.connection.FOLLOWERS_SECONDS", 0.05)
    async with broker_and_follower(tmp_path) as (broker, _):
        answer = await broker.ask(op="lock")
        assert (answer["gateways"], answer["acted"], answer["waiting"]) == (1, 0, ["gateway"])
        assert error_code(await broker.ask(op="issue")) == "locked"


async def test_who_waits_and_goes_leaves_nothing_behind(tmp_path: Path) -> None:
    async with broker_and_follower(tmp_path) as (broker, follower):

        def ask_and_go() -> None:
            with RawClient(broker.socket) as client:
                client.send(frame(1, "lock"))
                follower.client.receive()

        await in_thread(ask_and_go)
        follower.told = {"seq": 10**6}
        await in_thread(follower.report)
        assert (await broker.ask(op="status"))["ok"]


async def test_under_lock_nothing_is_issued_or_verified_and_unlock_restores_it(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as broker:
        token = (await broker.ask(op="issue"))["token"]
        assert (await broker.ask(op="lock"))["ok"]
        assert error_code(await broker.ask(op="issue")) == "locked"
        assert error_code(await broker.ask(op="verify", token=token)) == "locked"
        assert (await broker.ask(op="unlock"))["ok"]
        assert (await broker.ask(op="verify", token=token))["ok"]
        assert (await broker.ask(op="issue"))["ok"]


async def test_the_lock_and_revocations_survive_a_restart(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as broker:
        token = (await broker.ask(op="issue"))["token"]
        await broker.ask(op="revoke", by="uid", value=str(os.geteuid()))
        await broker.ask(op="lock")
    async with running_broker(tmp_path) as broker:
        told = await broker.ask(op="follow")
        assert told["locked"] is True
        assert told["revocations"][0][0] == "uid"
        assert error_code(await broker.ask(op="issue")) == "locked"
        await broker.ask(op="unlock")
        assert error_code(await broker.ask(op="verify", token=token)) == "token_revoked"
    async with running_broker(tmp_path) as broker:
        assert (await broker.ask(op="follow"))["locked"] is False


async def test_a_token_issued_right_after_a_revocation_counts_also_with_a_clock_set_back(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as broker:
        for step in (0.0, -3_600.0):
            broker.clock.time_offset = step
            before = (await broker.ask(op="issue"))["token"]
            await broker.ask(op="revoke", by="all")
            after = (await broker.ask(op="issue"))["token"]
            assert error_code(await broker.ask(op="verify", token=before)) == "token_revoked"
            assert (await broker.ask(op="verify", token=after))["ok"]


async def test_sessions_are_shown_by_gateway_and_forgotten_with_its_connection(tmp_path: Path) -> None:
    async with broker_and_follower(tmp_path) as (broker, follower):
        await in_thread(lambda: follower.report(opened=[session("a"), session("b", identity=None, uid=None)]))
        shown = await broker.ask(op="sessions")
        assert [(entry["id"], entry["gateway"]) for entry in shown["sessions"]] == [("a", "gateway"), ("b", "gateway")]
        assert shown["gateways"][0]["current"] is True
        follower.client.socket.close()
        with anyio.fail_after(5):
            while (await broker.ask(op="sessions"))["gateways"]:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert (await broker.ask(op="sessions"))["sessions"] == []


async def test_what_was_left_behind_is_on_the_record_over_restarts(tmp_path: Path) -> None:
    left = {
        "time": 7, "kind": "cron job", "name": "j1", "removal": "openclaw cron rm j1", "session": "a", "uid": 1000
    }  # fmt: skip
    async with broker_and_follower(tmp_path) as (_, follower):
        await in_thread(lambda: follower.report(left_behind=[left]))
    async with running_broker(tmp_path) as broker:
        assert (await broker.ask(op="left_behind"))["left_behind"] == [left]


ADMINISTRATION: list[Message] = [
    {"op": "lock"},
    {"op": "unlock"},
    {"op": "sessions"},
    {"op": "left_behind"},
    {"op": "revoke", "by": "all"},
    {"op": "explain", "pid": 1},
    {"op": "explain", "uid": 0},
]


@pytest.mark.parametrize("request_", ADMINISTRATION)
async def test_administration_takes_a_socket_that_allows_it(tmp_path: Path, request_: Message) -> None:
    sockets = [{"path": str(tmp_path / "broker.sock"), "mode": "0600", "allow": ["request", "follow"]}]
    async with running_broker(tmp_path, sockets=sockets) as broker:
        assert error_code(await broker.ask(**request_)) == "operation_not_allowed"
        assert (await broker.ask(op="status"))["locked"] is False


@pytest.mark.parametrize(("by", "value"), [("all", "x"), ("jti", ""), ("uid", "derek"), ("uid", ""), ("unit", "")])
async def test_a_revocation_of_nothing_in_particular_is_refused(tmp_path: Path, by: str, value: str) -> None:
    async with running_broker(tmp_path) as broker:
        assert error_code(await broker.ask(op="revoke", by=by, value=value)) == "invalid_request"
        assert (await broker.ask(op="follow"))["revocations"] == []


async def test_a_connection_that_follows_takes_reports_only(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as broker:

        def misuse() -> tuple[Message, Message | None]:
            with following(broker.socket) as follower:
                return follower.client.ask(op="lock"), follower.client.receive()

        reply, rest = await in_thread(misuse)
        assert (error_code(reply), rest) == ("malformed", None)
        assert (await broker.ask(op="status"))["locked"] is False


async def test_a_report_on_a_connection_that_does_not_follow_is_refused(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as broker:
        assert error_code(await broker.ask(op="report", seq=1)) == "invalid_request"


async def test_a_rule_gives_as_many_tokens_a_minute_as_it_says(tmp_path: Path) -> None:
    async with running_broker(tmp_path, rules=[own_rule(per_minute=2)]) as broker:
        replies = [await broker.ask(op="issue") for _ in range(4)]
        assert [reply["ok"] for reply in replies] == [True, True, False, False]
        assert error_code(replies[2]) == "rate_limited"
        assert 0 < replies[2]["error"]["retry_after"] <= 61
        journal = "".join(path.read_text() for path in (tmp_path / "state" / "journal").iterdir())
        assert journal.count('"event":"throttled"') == 1
        broker.clock.pass_time(61)
        assert (await broker.ask(op="issue"))["ok"]


async def test_a_gateway_that_was_away_learns_of_every_revocation(tmp_path: Path) -> None:
    """Also of those whose tokens have ended meanwhile: its sessions have not."""
    async with running_broker(tmp_path) as broker:
        await broker.ask(op="issue", ttl=5)
        broker.clock.pass_time(60)
        await broker.ask(op="revoke", by="uid", value="0")
        await broker.ask(op="revoke", by="uid", value="4242")
        told = await broker.ask(op="follow")
        assert [entry[1] for entry in told["revocations"]] == ["0", "4242"]


async def test_any_number_of_pipelined_changes_is_answered(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as broker:

        def pipeline() -> int:
            with RawClient(broker.socket) as client:
                client.send(b"".join(frame(number + 1, ("lock", "unlock")[number % 2]) for number in range(2_000)))
                return sum(client.receive() is not None for _ in range(2_000))

        assert await in_thread(pipeline) == 2_000


async def test_the_file_of_keys_is_not_written_for_what_it_does_not_say(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as broker:
        file = tmp_path / "jwks.json"
        before = file.stat()
        for request in ({"op": "lock"}, {"op": "revoke", "by": "all"}):
            await broker.ask(**request)
            now = file.stat()
            # A file that was written anew may have an earlier one's inode, and what stat() compares as is has seconds.
            assert (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
