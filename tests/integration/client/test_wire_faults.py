"""Both clients against a peer that does not do what a broker should, on a real socket."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest

from gatepass.aio import AsyncClient
from gatepass.client import Client
from gatepass.errors import DeniedError, ErrorCode, GatepassError, ProtocolError, TryLaterError, UnreachableError
from gatepass.frames import encode_frame
from support.client import ISSUE_RESULT, Conversation, always, both_clients, call, scripted

pytestmark = both_clients


def answer(talk: Conversation) -> None:
    talk.answer()


def hang_up(talk: Conversation) -> None:
    talk.request()


def half_a_frame(talk: Conversation) -> None:
    talk.send(encode_frame({"id": 1, "ok": True, **ISSUE_RESULT})[:20])


def another_id(talk: Conversation) -> None:
    talk.send(encode_frame({"id": 77, "ok": True, **ISSUE_RESULT}))


def silence(talk: Conversation) -> None:
    talk.stay_silent()


def drip(talk: Conversation) -> None:
    talk.request()
    for byte in encode_frame({"id": 1, "ok": True, **ISSUE_RESULT}):
        talk.connection.sendall(bytes([byte]))
        if talk.ended.wait(0.1):
            return


async def test_a_silent_broker_costs_the_timeout_and_no_more(kind: str, tmp_path: Path) -> None:
    with scripted(tmp_path / "s", silence):
        begun = time.monotonic()
        with pytest.raises(UnreachableError) as caught:
            await call(kind, tmp_path / "s", "issue", patience=0.2)
    assert caught.value.code is ErrorCode.TIMEOUT
    assert 0.2 <= time.monotonic() - begun < 1.0


async def test_a_byte_at_a_time_does_not_stretch_the_timeout(kind: str, tmp_path: Path) -> None:
    with scripted(tmp_path / "s", drip):
        begun = time.monotonic()
        with pytest.raises(UnreachableError):
            await call(kind, tmp_path / "s", "issue", patience=0.3)
    assert time.monotonic() - begun < 1.0


async def test_a_connection_that_ends_before_the_reply_is_made_again(kind: str, tmp_path: Path) -> None:
    with scripted(tmp_path / "s", hang_up, hang_up, hang_up, always(answer)) as peer:
        assert (await call(kind, tmp_path / "s", "issue")).token == "scripted.to.ken"
    assert peer.connections == 4


async def test_a_reply_that_is_cut_off_is_asked_for_again_once(kind: str, tmp_path: Path) -> None:
    with scripted(tmp_path / "s", half_a_frame, always(answer)) as peer:
        await call(kind, tmp_path / "s", "issue")
    assert peer.connections == 2


async def test_and_no_more_than_once(kind: str, tmp_path: Path) -> None:
    with scripted(tmp_path / "s", half_a_frame) as peer, pytest.raises(UnreachableError, match="without a reply"):
        await call(kind, tmp_path / "s", "issue")
    assert peer.connections == 2


async def test_the_answer_to_another_request_is_not_taken(kind: str, tmp_path: Path) -> None:
    with scripted(tmp_path / "s", another_id) as peer, pytest.raises(ProtocolError, match="another request"):
        await call(kind, tmp_path / "s", "issue")
    assert peer.connections == 1


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff", b"HTTP/1.1 200 OK\r\n\r\n", b"\0\0\0\1\xc1", encode_frame({"id": 1, "ok": True}), b"\0" * 4],
    ids=["4 GB", "HTTP", "no msgpack", "no token", "an empty body"],
)
async def test_what_is_no_reply_breaks_the_protocol(kind: str, tmp_path: Path, data: bytes) -> None:
    with scripted(tmp_path / "s", lambda talk: talk.send(data)), pytest.raises(ProtocolError):
        await call(kind, tmp_path / "s", "issue")


async def test_a_broker_that_is_starting_is_asked_again_when_it_says(kind: str, tmp_path: Path) -> None:
    def starting(talk: Conversation) -> None:
        talk.refuse("unavailable", retry_after=1)

    with scripted(tmp_path / "s", always(starting, answer)):
        begun = time.monotonic()
        assert (await call(kind, tmp_path / "s", "issue")).token == "scripted.to.ken"
    assert 1.0 <= time.monotonic() - begun < 2.0


async def test_a_broker_that_says_so_is_asked_again_on_a_new_connection(kind: str, tmp_path: Path) -> None:
    """It was too early to know the process: the same connection would be answered alike for ever."""

    def too_early(talk: Conversation) -> None:
        while True:
            talk.refuse("connect_again", retry_after=0)

    with scripted(tmp_path / "s", too_early, too_early, always(answer)) as peer:
        assert (await call(kind, tmp_path / "s", "issue")).token == "scripted.to.ken"
    assert peer.connections == 3


async def test_and_is_not_asked_for_longer_than_the_patience_lasts(kind: str, tmp_path: Path) -> None:
    with (
        scripted(tmp_path / "s", always(lambda talk: talk.refuse("connect_again", "too early"))) as peer,
        pytest.raises(GatepassError) as caught,
    ):
        await call(kind, tmp_path / "s", "issue", patience=0.3)
    # On a busy machine its time may be over while the last request is under way.
    assert caught.value.code in (ErrorCode.CONNECT_AGAIN, ErrorCode.TIMEOUT)
    assert peer.connections > 1


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("denied", DeniedError),
        ("locked", DeniedError),
        ("operation_not_allowed", DeniedError),
        ("rate_limited", TryLaterError),
        ("of_a_newer_broker", GatepassError),
    ],
)
async def test_an_answer_is_not_asked_for_again(
    kind: str, tmp_path: Path, code: str, error: type[GatepassError]
) -> None:
    with (
        scripted(tmp_path / "s", always(lambda talk: talk.refuse(code, "because", retry_after=1))) as peer,
        pytest.raises(error, match="because") as caught,
    ):
        await call(kind, tmp_path / "s", "issue")
    assert caught.value.retry_after == 1
    assert peer.connections == 1


async def test_a_missing_broker_is_waited_for_until_the_deadline(kind: str, tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(UnreachableError, match="does not exist"):
        await call(kind, tmp_path / "s", "issue", patience=0.3)
    assert 0.1 < time.monotonic() - begun < 1.0


async def test_a_socket_that_nobody_listens_on(kind: str, tmp_path: Path) -> None:
    with scripted(tmp_path / "s", answer):
        pass
    with pytest.raises(UnreachableError, match="nobody listens"):
        await call(kind, tmp_path / "s", "issue", patience=0.2)


async def test_one_connection_serves_many_requests_and_refusals(kind: str, tmp_path: Path) -> None:
    def refuse(talk: Conversation) -> None:
        talk.refuse("denied")

    async def ask_thrice(client: Client | AsyncClient) -> None:
        for _ in range(3):
            with pytest.raises(DeniedError):
                await _issue(client)
            await _issue(client)

    with scripted(tmp_path / "s", always(refuse, answer)) as peer:
        if kind == "blocking":
            with Client(str(tmp_path / "s")) as client:
                await ask_thrice(client)
        else:
            async with AsyncClient(str(tmp_path / "s")) as twin:
                await ask_thrice(twin)
    assert peer.connections == 1


async def test_a_connection_that_died_while_idle_is_not_noticed(kind: str, tmp_path: Path) -> None:
    async def ask_twice(client: Client | AsyncClient) -> None:
        await _issue(client)
        await anyio.sleep(0.05)
        await _issue(client)

    with scripted(tmp_path / "s", answer) as peer:
        if kind == "blocking":
            with Client(str(tmp_path / "s")) as client:
                await ask_twice(client)
        else:
            async with AsyncClient(str(tmp_path / "s")) as twin:
                await ask_twice(twin)
    assert peer.connections == 2


async def _issue(client: Client | AsyncClient) -> None:
    if isinstance(client, AsyncClient):
        await client.issue()
    else:
        await anyio.to_thread.run_sync(client.issue)
