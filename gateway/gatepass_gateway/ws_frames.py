"""WebSocket frames (RFC 6455 section 5), as far as a relay must understand them. No I/O.

`FrameReader` cuts a stream into whole frames, for the few that are read. `FrameTracker` follows frame headers in
bytes that are only passed on, so that a close frame can be placed between two frames. The well-kept libraries
decode and encode every message anew and tell neither the bytes nor the boundaries.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import IntEnum
from typing import Final, NamedTuple


class Opcode(IntEnum):
    """RFC 6455 section 5.2."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class CloseCode(IntEnum):
    """RFC 6455 section 7.4.1 and the IANA registry."""

    NORMAL = 1000
    PROTOCOL_ERROR = 1002
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    TOO_BIG = 1009
    SERVICE_RESTART = 1012


class WebSocketError(Exception):
    """The peer broke the protocol; the connection ends with `close_code`."""

    def __init__(self, close_code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.close_code = close_code
        self.reason = reason


class Frame(NamedTuple):
    """One whole frame."""

    opcode: Opcode
    fin: bool
    payload: bytes
    """Unmasked."""
    raw: bytes
    """As it came, to be passed on unchanged."""


class _Head(NamedTuple):
    opcode: Opcode
    fin: bool
    mask: bytes | None
    size: int
    """Bytes of the frame header."""
    length: int
    """Bytes of the payload."""


MAX_CONTROL_PAYLOAD: Final = 125


def _parse_head(data: bytes | bytearray, *, masked: bool) -> _Head | None:
    """Return the frame header at the start of `data`, or None if more is needed. Raise `WebSocketError`."""
    if len(data) < 2:
        return None
    first, second = data[0], data[1]
    try:
        opcode = Opcode(first & 0x0F)
    except ValueError:
        raise WebSocketError(CloseCode.PROTOCOL_ERROR, "unknown opcode") from None
    fin, short = bool(first & 0x80), second & 0x7F
    if first & 0x70:
        raise WebSocketError(CloseCode.PROTOCOL_ERROR, "reserved bits are set, but no extension was agreed on")
    if bool(second & 0x80) != masked:
        raise WebSocketError(CloseCode.PROTOCOL_ERROR, "client frames must be masked, server frames must not")
    if opcode >= Opcode.CLOSE and (short > MAX_CONTROL_PAYLOAD or not fin):
        raise WebSocketError(CloseCode.PROTOCOL_ERROR, "a control frame is too long or fragmented")
    extended = {126: 2, 127: 8}.get(short, 0)
    size = 2 + extended + (4 if masked else 0)
    if len(data) < size:
        return None
    length = int.from_bytes(data[2 : 2 + extended], "big") if extended else short
    if length >= 2**63:
        raise WebSocketError(CloseCode.PROTOCOL_ERROR, "impossible frame length")
    return _Head(opcode, fin, bytes(data[size - 4 : size]) if masked else None, size, length)


class FrameReader:
    """Cuts a stream into whole frames of at most `max_payload` bytes.

    `masked` says which direction is read: True for what a client sends, False for what a server sends.
    """

    def __init__(self, *, masked: bool, max_payload: int) -> None:
        self._masked = masked
        self._max_payload = max_payload
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take what arrived."""
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """Return the next whole frame, or None until more is fed. Raise `WebSocketError`."""
        head = _parse_head(self._buffer, masked=self._masked)
        if head is None:
            return None
        if head.length > self._max_payload:
            raise WebSocketError(CloseCode.TOO_BIG, f"the frame has more than {self._max_payload} bytes")
        end = head.size + head.length
        if len(self._buffer) < end:
            return None
        raw = bytes(self._buffer[:end])
        del self._buffer[:end]
        payload = raw[head.size :]
        return Frame(head.opcode, head.fin, apply_mask(payload, head.mask) if head.mask else payload, raw)

    def take_rest(self) -> bytes:
        """Return and forget what was fed beyond the frames that were read."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest


class MessageAssembler:
    """Joins the fragments of one data message of at most `max_payload` bytes; control frames may come between."""

    def __init__(self, max_payload: int) -> None:
        self._max_payload = max_payload
        self._payload = bytearray()
        self._started = False

    def add(self, frame: Frame) -> bytes | None:
        """Take a data frame; return the whole message when it was the last. Raise `WebSocketError`."""
        if (frame.opcode is Opcode.CONTINUATION) != self._started:
            raise WebSocketError(CloseCode.PROTOCOL_ERROR, "fragments out of order")
        self._payload += frame.payload
        if len(self._payload) > self._max_payload:
            raise WebSocketError(CloseCode.TOO_BIG, f"the message has more than {self._max_payload} bytes")
        self._started = not frame.fin
        if self._started:
            return None
        message = bytes(self._payload)
        self._payload.clear()
        return message


class FrameTracker:
    """Follows the frames in a stream that is passed on unread. Knows after each byte whether a frame is complete."""

    def __init__(self, *, masked: bool) -> None:
        self._masked = masked
        self._head = bytearray()
        self._payload_left = 0

    @property
    def at_boundary(self) -> bool:
        """Whether what was seen so far ends with a whole frame."""
        return not self._head and not self._payload_left

    def advance(self, data: bytes, max_frames: int | None = None) -> int:
        """Take what is passed on, up to the end of the frame number `max_frames` in it. Return how many bytes that is.

        Raise `WebSocketError` where it is not a sequence of frames.
        """
        position = frames = 0
        while position < len(data) and frames != max_frames:
            if self._payload_left:
                step = min(self._payload_left, len(data) - position)
                self._payload_left -= step
                self._pass(data, position, position + step)
                position += step
                if not self._payload_left:
                    frames += 1
                    self._end()
                continue
            # A header has at most 14 bytes; taking them in one slice costs less than taking them one by one.
            known = len(self._head)
            self._head += data[position : position + 14 - known]
            head = _parse_head(self._head, masked=self._masked)
            if head is None:
                return len(data)
            position += head.size - known
            self._payload_left = head.length
            self._head.clear()
            self._begin(head)
            if not head.length:
                frames += 1
                self._end()
        return position

    def _begin(self, head: _Head) -> None:
        """Take note that a frame begins."""

    def _pass(self, data: bytes, start: int, end: int) -> None:
        """Take note of a piece of its payload: `data` from `start` to `end`."""

    def _end(self) -> None:
        """Take note that it is complete."""


class MessageTap(FrameTracker):
    """Follows frames too, and gives each data message of at most `max_payload` bytes, whole, to `on_message`.

    `is_wanted` is asked at a message's beginning: what is not wanted costs as little as in a `FrameTracker`.
    `on_too_big` is called instead for a longer one.
    """

    def __init__(
        self,
        *,
        masked: bool,
        max_payload: int,
        is_wanted: Callable[[], bool],
        on_message: Callable[[bytes], None],
        on_too_big: Callable[[], None],
    ) -> None:
        super().__init__(masked=masked)
        self._max_payload = max_payload
        self._is_wanted = is_wanted
        self._on_message = on_message
        self._on_too_big = on_too_big
        self._frame: _Head | None = None
        self._masked_payload = bytearray()
        self._message: bytearray | None = None

    def _begin(self, head: _Head) -> None:
        self._frame = head
        if head.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._message = bytearray() if self._is_wanted() else None
        if self._message is None or head.opcode >= Opcode.CLOSE:
            return
        if len(self._message) + head.length > self._max_payload:
            self._message = None
            self._on_too_big()

    def _pass(self, data: bytes, start: int, end: int) -> None:
        if self._message is not None and self._frame is not None and self._frame.opcode < Opcode.CLOSE:
            self._masked_payload += data[start:end]

    def _end(self) -> None:
        frame, self._frame = self._frame, None
        if self._message is None or frame is None or frame.opcode >= Opcode.CLOSE:
            return
        payload, self._masked_payload = bytes(self._masked_payload), bytearray()
        self._message += apply_mask(payload, frame.mask) if frame.mask else payload
        if frame.fin:
            message, self._message = bytes(self._message), None
            self._on_message(message)


def apply_mask(payload: bytes, mask: bytes) -> bytes:
    """Return `payload` masked, or unmasked, with the 4 bytes of `mask`. Source: RFC 6455 section 5.3."""
    size = len(payload)
    repeated = (mask * (size // 4 + 1))[:size]
    # One XOR of two large integers is fifty times as fast as a loop over bytes.
    return (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")


def encode_frame(opcode: Opcode, payload: bytes, *, masked: bool) -> bytes:
    """Return one whole frame, masked with a fresh key where a client sends it."""
    mask_bit = 0x80 if masked else 0
    size = len(payload)
    if size <= MAX_CONTROL_PAYLOAD:
        head = bytes((0x80 | opcode, mask_bit | size))
    elif size < 2**16:
        head = bytes((0x80 | opcode, mask_bit | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, mask_bit | 127)) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + apply_mask(payload, mask)


def encode_close(code: int, reason: str, *, masked: bool) -> bytes:
    """Return a close frame; the reason is cut to what a control frame can hold."""
    text = reason.encode()[: MAX_CONTROL_PAYLOAD - 2].decode("utf-8", "ignore").encode()
    return encode_frame(Opcode.CLOSE, code.to_bytes(2, "big") + text, masked=masked)
