"""After the login: bytes are passed on in both directions, with the frames in them followed, until one end closes."""

from __future__ import annotations

import contextlib
import math
from typing import Final

import anyio
from anyio.abc import SocketStream

from gatepass_gateway.concurrency import run_beside
from gatepass_gateway.http_peer import BROKEN, READ_SIZE
from gatepass_gateway.stopping import Stopping
from gatepass_gateway.websocket_link import WebSocketLink
from gatepass_gateway.ws_frames import CloseCode, FrameTracker, WebSocketError, encode_close

_END_SECONDS: Final = 1


class _Direction:
    """What flows from one end to the other."""

    def __init__(self, source: WebSocketLink, sink: SocketStream, *, from_client: bool) -> None:
        self._source = source
        self._sink = sink
        self._from_client = from_client
        self._tracker = FrameTracker(masked=from_client)
        self._sending = False

    async def pump(self) -> None:
        """Pass bytes on until the source ends, which raises `EndOfStream`; `WebSocketError` if they are no frames."""
        data = self._source.take_rest()
        while True:
            if data:
                self._sending = True
                self._tracker.advance(data)
                await self._sink.send(data)
                self._sending = False
            data = await self._source.stream.receive(READ_SIZE)

    async def end(self, code: CloseCode, reason: str) -> None:
        """Tell the sink that the session is over; without a word where that would fall into the middle of a frame."""
        if not self._sending and self._tracker.at_boundary:
            await self._sink.send(encode_close(code, reason, masked=self._from_client))


async def relay(client: WebSocketLink, server: WebSocketLink, stopping: Stopping) -> None:
    """Pass everything on until one end closes or the proxy stops; in the latter case both ends are told."""
    up = _Direction(client, server.stream, from_client=True)
    down = _Direction(server, client.stream, from_client=False)
    code, reason = CloseCode.SERVICE_RESTART, "gatepass: the proxy restarts, connect again"
    with stopping.interruptible(math.inf):
        try:
            await run_beside(down.pump, up.pump)
        except BROKEN:
            return
        except WebSocketError as error:
            code, reason = error.close_code, error.reason
    with anyio.move_on_after(_END_SECONDS, shield=True), contextlib.suppress(*BROKEN):
        await down.end(code, reason)
        await up.end(code, reason)
