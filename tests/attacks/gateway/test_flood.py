"""A user who floods, or whose gateway reads slowly, delays nobody's cut and gets nothing past it."""

from __future__ import annotations

import json
from array import array
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from termios import FIONREAD
from typing import Any, cast

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from websockets.frames import Frame, Opcode

from gatepass_gateway import websocket_link
from gatepass_gateway.sessions import Held
from gatepass_gateway.stopping import Stopping
from gatepass_gateway.websocket_link import WebSocketLink
from gatepass_gateway.websocket_relay import MAX_FRAMES_AT_ONCE, Watcher, relay
from support.fake_broker import running_followed
from support.gateway import (
    UPGRADE,
    connect_message,
    eventually,
    messages_until_close,
    next_json,
    raw_client,
    read_until,
)
from support.upstream import Session

BOTH_LOOPS = pytest.mark.parametrize(
    "anyio_backend",
    [
        pytest.param(("asyncio", {"use_uvloop": uvloop}), id=name)
        for uvloop, name in ((True, "uvloop"), (False, "asyncio"))
    ],
)
EMPTY = Frame(Opcode.TEXT, b"").serialize(mask=True)
PING = Frame(Opcode.PING, b"").serialize(mask=True)
UNANSWERED = Frame(Opcode.PONG, bytes(125)).serialize(mask=True)
"""To answer a connection that is gone would make the kernel reset it, and hide what is tested."""


class Stream:
    """Gives what it was made with and then ends, and keeps what is sent to it, piece by piece."""

    def __init__(self, *pieces: bytes, ends: bool = True) -> None:
        self.pieces = list(pieces)
        self.ends = ends
        self.sent: list[bytes] = []
        self.deadlines: list[float] = []

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        self.deadlines.append(anyio.current_effective_deadline())
        await anyio.lowlevel.checkpoint()
        if not self.pieces and not self.ends:
            await anyio.sleep_forever()
        if not self.pieces:
            raise anyio.EndOfStream
        first = self.pieces.pop(0)
        if first[max_bytes:]:
            self.pieces.insert(0, first[max_bytes:])
        return first[:max_bytes]

    async def send(self, data: bytes) -> None:
        self.deadlines.append(anyio.current_effective_deadline())
        await anyio.lowlevel.checkpoint()
        self.sent.append(data)

    async def send_eof(self) -> None:
        pass


def link(stream: Stream, *, peer_is_client: bool = True) -> WebSocketLink:
    return WebSocketLink(cast("anyio.abc.SocketStream", stream), b"", peer_is_client=peer_is_client)


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("frame", [EMPTY, PING], ids=["empty", "ping"])
async def test_a_flood_of_tiny_frames_is_followed_in_small_steps_with_a_turn_of_the_loop_for_others_between(
    frame: bytes, watched: bool
) -> None:
    flood = frame * 10_000
    client, server = Stream(flood), Stream(ends=False)
    watcher = Watcher(lambda _: None, lambda: None) if watched else None
    await relay(link(client), link(server, peer_is_client=False), Stopping(), Held(), watcher)
    assert b"".join(server.sent) == flood
    assert max(map(len, server.sent)) <= MAX_FRAMES_AT_ONCE * len(frame)


async def test_large_frames_pass_in_pieces_as_large_as_they_are_read() -> None:
    bulk = Frame(Opcode.BINARY, bytes(1_000_000)).serialize(mask=True) * 2
    server = Stream(ends=False)
    await relay(link(Stream(bulk)), link(server, peer_is_client=False), Stopping(), Held())
    assert b"".join(server.sent) == bulk
    assert len(server.sent) == -(-len(bulk) // 65_536)


async def log_in(stream: anyio.abc.SocketStream, token: str) -> None:
    await stream.send(UPGRADE)
    await read_until(stream, b'"ts": 1}}')
    message = json.dumps(connect_message({"password": token}))
    await stream.send(Frame(Opcode.TEXT, message.encode()).serialize(mask=True))
    await read_until(stream, b"}}}")


def transport_of(session: Session) -> Any:
    assert session.stream is not None
    return cast("Any", session.stream)._transport  # what anyio offers cannot stop a pending read


def unread(session: Session) -> int:
    """Return how many bytes have reached the gateway's socket and wait there."""
    assert session.stream is not None
    count = array("i", [0])
    ioctl(session.stream.extra(anyio.abc.SocketAttribute.raw_socket).fileno(), FIONREAD, count)
    return count[0]


@BOTH_LOOPS
async def test_what_a_slow_gateway_has_not_taken_when_the_cut_is_acknowledged_never_reaches_it(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), raw_client(gateway.port) as client:
        await log_in(client, gateway.token())
        behind, raw = gateway.upstream.sessions[1], gateway.upstream.raw[2]
        transport_of(behind).pause_reading()
        batch = UNANSWERED * 4_000
        with suppress(anyio.BrokenResourceError):
            while True:
                with anyio.move_on_after(0.2) as blocked:
                    await client.send(batch)
                if blocked.cancelled_caught:
                    break
        await broker.lock()
        known = len(raw) + unread(behind)
        transport_of(behind).resume_reading()
        await eventually(behind.ended.is_set)
        assert len(raw) <= known


@BOTH_LOOPS
async def test_what_waits_in_the_kernel_alone_never_reaches_the_gateway_either(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), raw_client(gateway.port) as client:
        await log_in(client, gateway.token())
        behind, raw = gateway.upstream.sessions[1], gateway.upstream.raw[2]
        transport_of(behind).pause_reading()
        before = -1
        while (now := unread(behind)) != before:
            before = now
            await client.send(UNANSWERED * 100)
            await anyio.sleep(0.01)
        await broker.lock()
        known = len(raw) + unread(behind)
        transport_of(behind).resume_reading()
        await eventually(behind.ended.is_set)
        assert len(raw) <= known


@BOTH_LOOPS
async def test_a_gateway_that_has_taken_everything_gets_a_close_frame(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), gateway.login() as client:
        await client.send("one")
        await client.recv()
        await broker.lock()
        behind = gateway.upstream.sessions[1]
        await eventually(behind.ended.is_set)
        assert (behind.close_code, behind.close_reason[:9]) == (1008, "gatepass:")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a peer for longer than a cut may take, unless the session is cut."""
    monkeypatch.setattr(websocket_link, "_CLOSE_SECONDS", 10)
    monkeypatch.setattr(websocket_link, "_CUT_SECONDS", 0.05)


@BOTH_LOOPS
@pytest.mark.usefixtures("patient")
async def test_a_gateway_that_does_not_close_the_connection_of_the_challenge_delays_no_cut(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), gateway.websocket() as client:
        await next_json(client)
        transport_of(gateway.upstream.sessions[0]).pause_reading()
        await client.send(json.dumps(connect_message({"password": gateway.token()})))
        await broker.has_sessions(1)
        await broker.lock()
        (answer,) = await messages_until_close(client)
        assert (answer["error"]["details"]["authReason"], client.close_code) == ("gatepass_locked", 1008)
        transport_of(gateway.upstream.sessions[0]).resume_reading()


async def test_closing_has_one_deadline_for_the_frame_and_for_the_answer() -> None:
    stream = Stream(b"one", b"two", b"the end")
    await link(stream).close(1000)
    assert len(stream.sent) == 1
    assert len(stream.deadlines) == 5
    assert len(set(stream.deadlines)) == 1
