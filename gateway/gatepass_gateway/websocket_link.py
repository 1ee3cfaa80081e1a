"""One end of a WebSocket whose first frames are read one by one, before its bytes are only relayed."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Final, NamedTuple

import anyio
from anyio.abc import SocketAttribute, SocketStream

from gatepass_gateway.connect_frame import MAX_CONNECT_FRAME
from gatepass_gateway.http_peer import BROKEN, READ_SIZE
from gatepass_gateway.ws_frames import (
    CloseCode,
    Frame,
    FrameReader,
    MessageAssembler,
    Opcode,
    WebSocketError,
    encode_close,
    encode_frame,
)

_MAX_SERVER_MESSAGE: Final = 16_777_216
"""Bytes of the gateway's largest message before the login is complete: its `hello` holds a snapshot."""

_MAX_CONTROL_FRAMES: Final = 64
_MAX_FRAGMENTS: Final = 1_024
"""Of one message: empty ones cost memory and never reach its limit in bytes."""

_CLOSE_SECONDS: Final = 2
"""For the peer to take a close frame and to close."""

_CUT_SECONDS: Final = 0.5
"""The same, from the moment in which the session is cut: its acknowledgement waits."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""`struct linger` (socket(7)): do not send what is unsent, reset the connection."""

_NO_SOCKET: Final = (OSError, ValueError, AttributeError)
"""What the socket of a connection that the event loop has closed by itself raises: each loop another."""

_NEVER_SENT: Final = frozenset({1004, 1005, 1006, 1015})
"""Close codes that no frame may carry (RFC 6455 section 7.4.1)."""


class ClosedByPeerError(Exception):
    """The peer sent a close frame with this code and reason (RFC 6455 section 5.5.1)."""

    def __init__(self, frame: Frame) -> None:
        super().__init__("the peer closed the WebSocket")
        code = int.from_bytes(frame.payload[:2], "big")
        self.code = code if len(frame.payload) > 1 and code not in _NEVER_SENT and code >= CloseCode.NORMAL else 1000
        self.reason = frame.payload[2:].decode("utf-8", "replace")


class Message(NamedTuple):
    """A data message and the frames that it came in."""

    payload: bytes
    frames: tuple[bytes, ...]


class WebSocketLink:
    """The connection to a client (`peer_is_client`) or to the gateway behind."""

    def __init__(self, stream: SocketStream, first_bytes: bytes, *, peer_is_client: bool) -> None:
        self.stream = stream
        self._masks = not peer_is_client
        self._max_payload = MAX_CONNECT_FRAME if peer_is_client else _MAX_SERVER_MESSAGE
        self._reader = FrameReader(masked=peer_is_client, max_payload=self._max_payload)
        self._reader.feed(first_bytes)
        self._closed = False
        self._in_message = False

    async def next_frame(self) -> Frame:
        """Return the next whole frame. Raise `WebSocketError` and the stream's errors."""
        while (frame := self._reader.next_frame()) is None:
            self._reader.feed(await self.stream.receive(READ_SIZE))
        return frame

    async def next_message(self, other: WebSocketLink) -> Message:
        """Return the next data message, whole; pass control frames on to `other`.

        Raise `ClosedByPeerError` for a close frame, `WebSocketError` and the stream's errors.
        """
        assembler, frames, control_frames = MessageAssembler(self._max_payload), [], 0
        while True:
            frame = await self.next_frame()
            if frame.opcode is Opcode.CLOSE:
                raise ClosedByPeerError(frame)
            if frame.opcode in (Opcode.PING, Opcode.PONG):
                control_frames += 1
                if control_frames > _MAX_CONTROL_FRAMES:
                    raise WebSocketError(CloseCode.POLICY_VIOLATION, "too many control frames before the login")
                await other.stream.send(frame.raw)
                continue
            frames.append(frame.raw)
            if len(frames) > _MAX_FRAGMENTS:
                raise WebSocketError(CloseCode.POLICY_VIOLATION, "too many fragments before the login")
            payload = assembler.add(frame)
            if payload is not None:
                return Message(payload, tuple(frames))

    async def send_frames(self, frames: tuple[bytes, ...]) -> None:
        """Send frames as they came from the other end. Where that is interrupted, no message may follow."""
        self._in_message = True
        for frame in frames:
            await self.stream.send(frame)
        self._in_message = False

    async def send_text(self, payload: bytes) -> None:
        """Send a text message in one frame, unless another message was left unfinished."""
        if self._in_message:
            return
        await self.stream.send(encode_frame(Opcode.TEXT, payload, masked=self._masks))

    async def close(self, code: int, reason: str = "") -> None:
        """Send a close frame, give the peer a moment to answer it, and end the connection. Once is enough."""
        if self._closed:
            return
        self._closed = True
        async with _finishing():
            await self.stream.send(encode_close(code, reason, masked=self._masks))
            await self._drain()

    async def linger(self) -> None:
        """Say that nothing more comes, and take what the peer still sends, for a moment.

        To close at once with something unread makes the kernel reset the connection, and the peer lose the last frame.
        """
        async with _finishing():
            await self._drain()

    async def _drain(self) -> None:
        await self.stream.send_eof()
        while True:
            await self.stream.receive(READ_SIZE)

    @property
    def holds_unsent(self) -> bool:
        """Whether the kernel has bytes for the peer that it has not acknowledged (SIOCOUTQ of tcp(7))."""
        try:
            own = self.stream.extra(SocketAttribute.raw_socket)
            return any(ioctl(own.fileno(), TIOCOUTQ, bytes(4)))
        except _NO_SOCKET:
            return False

    async def reset(self) -> None:
        """End the connection at once; what is unsent is dropped, here and in the kernel."""
        self._closed = True
        with contextlib.suppress(*_NO_SOCKET):
            own = self.stream.extra(SocketAttribute.raw_socket)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        await anyio.aclose_forcefully(self.stream)

    def take_rest(self) -> bytes:
        """Return what was received beyond the frames that were read, for a relay to begin with."""
        return self._reader.take_rest()


@asynccontextmanager
async def _finishing() -> AsyncIterator[None]:
    """Run the block until the peer is gone, for `_CLOSE_SECONDS`, or `_CUT_SECONDS` after its caller is cancelled."""
    bound = anyio.move_on_after(_CLOSE_SECONDS, shield=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_hasten, bound)
        with bound, contextlib.suppress(*BROKEN, RuntimeError):  # RuntimeError: uvloop has closed it already
            yield
        tasks.cancel_scope.cancel()


async def _hasten(bound: anyio.CancelScope) -> None:
    """Shorten `bound`, which is shielded, once this task is cancelled."""
    try:
        await anyio.sleep_forever()
    finally:
        bound.deadline = min(bound.deadline, anyio.current_time() + _CUT_SECONDS)
