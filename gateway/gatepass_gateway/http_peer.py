"""An h11 connection joined to a stream: events in, events out."""

from __future__ import annotations

import contextlib
from http import HTTPStatus
from typing import Final, cast

import anyio
import h11
from anyio.abc import SocketStream

from gatepass.errors import GatepassError
from gatepass_gateway.answers import answer

READ_SIZE: Final = 65_536

MAX_HEAD: Final = 32_768
"""Bytes of a request or status line with its header; Node takes 16 KiB, nginx 32."""

_LINGER_SECONDS: Final = 1
_LINGER_BYTES: Final = 1_048_576

BROKEN: Final[tuple[type[Exception], ...]] = (
    anyio.EndOfStream,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    OSError,
)
"""What a stream raises once the other end is gone."""

Event = h11.Event | type[h11.PAUSED]


class HttpPeer:
    """One end of an HTTP/1.1 connection. `role` is ours: `h11.SERVER` towards clients, `h11.CLIENT` upstream."""

    def __init__(self, stream: SocketStream, role: type[h11.CLIENT] | type[h11.SERVER]) -> None:
        self.stream = stream
        self.state = h11.Connection(role, max_incomplete_event_size=MAX_HEAD)
        self._asked_for_head = False

    async def next_event(self) -> Event:
        """Return what the peer sent next. Raise `h11.RemoteProtocolError` and the stream's errors."""
        while True:
            event = self.state.next_event()
            if isinstance(event, h11.Request):
                self._asked_for_head = event.method == b"HEAD"
            if event is not h11.NEED_DATA:
                return cast("Event", event)  # mypy does not narrow h11's sentinel types
            if self.state.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            await self.receive()

    async def receive(self) -> bool:
        """Take what has arrived without looking at it. Return False at the end of the stream."""
        try:
            data = await self.stream.receive(READ_SIZE)
        except anyio.EndOfStream:
            data = b""
        self.state.receive_data(data)
        return bool(data)

    async def send(self, event: h11.Event) -> None:
        """Send an event."""
        data = self.state.send(event)
        if data:
            await self.stream.send(data)

    async def refuse(self, error: GatepassError, *, linger: bool = True) -> None:
        """Answer with an error, as far as the state still allows, and end the connection."""
        if self.state.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        refusal = answer(error)
        await self.send(
            h11.Response(
                status_code=refusal.status, headers=list(refusal.headers), reason=HTTPStatus(refusal.status).phrase
            )
        )
        if not self._asked_for_head:
            await self.send(h11.Data(data=refusal.body))
        await self.send(h11.EndOfMessage())
        if linger:
            await self.linger()

    async def linger(self) -> None:
        """Say that nothing more comes, and take what the peer was still sending.

        To close at once with something unread makes the kernel reset the connection, and the peer lose the answer.
        """
        taken = 0
        with anyio.move_on_after(_LINGER_SECONDS), contextlib.suppress(*BROKEN, RuntimeError):
            await self.stream.send_eof()  # RuntimeError: uvloop has closed it already
            while taken < _LINGER_BYTES:
                taken += len(await self.stream.receive(READ_SIZE))
