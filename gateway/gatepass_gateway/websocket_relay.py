"""After the login: bytes are passed on in both directions, with the frames in them followed, until one end closes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Final

import anyio
from anyio.abc import SocketStream

from gatepass_gateway.concurrency import run_beside
from gatepass_gateway.http_peer import BROKEN, READ_SIZE
from gatepass_gateway.left_behind import MAX_MESSAGE, Trace, Watch
from gatepass_gateway.sessions import Held
from gatepass_gateway.stopping import Stopping
from gatepass_gateway.websocket_link import WebSocketLink
from gatepass_gateway.ws_frames import CloseCode, FrameTracker, MessageTap, WebSocketError, encode_close

_END_SECONDS: Final = 0.5
"""For each end to take the last frame; beyond, its connection is cut."""

MAX_FRAMES_AT_ONCE: Final = 64
"""In one turn of the loop: a read can hold ten thousand empty ones, and a user can have a hundred connections."""


class Watcher:
    """Looks at the messages that pass, beside the relay, for what they leave behind."""

    def __init__(self, on_trace: Callable[[Trace], None], on_unread: Callable[[], None]) -> None:
        self._watch = Watch()
        self._on_trace = on_trace
        self._on_unread = on_unread

    def tracker(self, *, from_client: bool) -> FrameTracker:
        """Return what follows the frames of one direction."""
        return MessageTap(
            masked=from_client,
            max_payload=MAX_MESSAGE,
            is_wanted=(lambda: True) if from_client else (lambda: self._watch.awaits_answer),
            on_message=self._request if from_client else self._answer,
            on_too_big=self._on_unread,
        )

    def _request(self, message: bytes) -> None:
        if not self._watch.request(message):
            self._on_unread()

    def _answer(self, message: bytes) -> None:
        if trace := self._watch.answer(message):
            self._on_trace(trace)


class _Direction:
    """What flows from one end to the other."""

    def __init__(
        self, source: WebSocketLink, sink: SocketStream, *, from_client: bool, watcher: Watcher | None
    ) -> None:
        self._source = source
        self._sink = sink
        self._from_client = from_client
        self._tracker = watcher.tracker(from_client=from_client) if watcher else FrameTracker(masked=from_client)
        self.is_sending = False
        """Whether there is something that the sink has not taken, and where it stops is not known."""

    async def pump(self) -> None:
        """Pass bytes on until the source ends, which raises `EndOfStream`; `WebSocketError` if they are no frames."""
        data = self._source.take_rest()
        while True:
            while data:
                self.is_sending = True
                size = self._tracker.advance(data, MAX_FRAMES_AT_ONCE)
                await self._sink.send(data[:size])
                self.is_sending = False
                data = data[size:]
            data = await self._source.stream.receive(READ_SIZE)

    async def end(self, code: CloseCode, reason: str) -> None:
        """Tell the sink that the session is over; without a word where that would fall into the middle of a frame."""
        if self.is_sending or not self._tracker.at_boundary:
            return
        with anyio.move_on_after(_END_SECONDS, shield=True), contextlib.suppress(*BROKEN):
            await self._sink.send(encode_close(code, reason, masked=self._from_client))


async def relay(
    client: WebSocketLink, server: WebSocketLink, stopping: Stopping, held: Held, watcher: Watcher | None = None
) -> None:
    """Pass everything on until one end closes, the session has to end or the proxy stops; then both ends are told."""
    up = _Direction(client, server.stream, from_client=True, watcher=watcher)
    down = _Direction(server, client.stream, from_client=False, watcher=watcher)
    code, reason = CloseCode.SERVICE_RESTART, "gatepass: the proxy restarts, connect again"
    with stopping.interruptible(math.inf), held.interruptible():
        try:
            await run_beside(down.pump, up.pump)
        except BROKEN:
            return
        except WebSocketError as error:
            code, reason = error.close_code, error.reason
    if held.cut:
        code, reason = CloseCode.POLICY_VIOLATION, f"gatepass: {held.cut.message}"
        if up.is_sending or server.holds_unsent:
            await server.reset()
    await down.end(code, reason)  # the client first: with many sessions at once it would wait for all other ends
    await up.end(code, reason)
    held.finish()
    if held.cut:
        await server.linger()
        await client.linger()
