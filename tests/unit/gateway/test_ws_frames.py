"""Frames against RFC 6455 and its own examples (section 5.7)."""

from __future__ import annotations

import pytest
from websockets.frames import Frame as ReferenceFrame
from websockets.frames import Opcode as ReferenceOpcode

from gatepass_gateway.ws_frames import (
    CloseCode,
    FrameReader,
    FrameTracker,
    MessageAssembler,
    Opcode,
    WebSocketError,
    apply_mask,
    encode_close,
    encode_frame,
)


def read(data: bytes, *, masked: bool = False, max_payload: int = 100_000) -> list[tuple[Opcode, bool, bytes]]:
    reader = FrameReader(masked=masked, max_payload=max_payload)
    reader.feed(data)
    frames = []
    while (frame := reader.next_frame()) is not None:
        frames.append((frame.opcode, frame.fin, frame.payload))
    return frames


@pytest.mark.parametrize(
    ("data", "masked", "frames"),
    [
        (b"\x81\x05Hello", False, [(Opcode.TEXT, True, b"Hello")]),
        (b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", True, [(Opcode.TEXT, True, b"Hello")]),
        (b"\x01\x03Hel\x80\x02lo", False, [(Opcode.TEXT, False, b"Hel"), (Opcode.CONTINUATION, True, b"lo")]),
        (b"\x89\x05Hello", False, [(Opcode.PING, True, b"Hello")]),
        (b"\x82\x7e\x01\x00" + b"x" * 256, False, [(Opcode.BINARY, True, b"x" * 256)]),
        (b"\x82\x7f" + (65_536).to_bytes(8, "big") + b"x" * 65_536, False, [(Opcode.BINARY, True, b"x" * 65_536)]),
        (b"\x81\x80abcd", True, [(Opcode.TEXT, True, b"")]),
    ],
)
def test_the_examples_of_the_standard(data: bytes, masked: bool, frames: list[tuple[Opcode, bool, bytes]]) -> None:
    assert read(data, masked=masked) == frames


@pytest.mark.parametrize(
    ("data", "masked", "code"),
    [
        (b"\x81\x05Hello", True, CloseCode.PROTOCOL_ERROR),
        (b"\x81\x85\0\0\0\0Hello", False, CloseCode.PROTOCOL_ERROR),
        (b"\xc1\x05Hello", False, CloseCode.PROTOCOL_ERROR),
        (b"\x83\x00", False, CloseCode.PROTOCOL_ERROR),
        (b"\x8b\x00", False, CloseCode.PROTOCOL_ERROR),
        (b"\x09\x00", False, CloseCode.PROTOCOL_ERROR),
        (b"\x89\x7e\x00\x7e", False, CloseCode.PROTOCOL_ERROR),
        (b"\x82\x7f\xff" + b"\0" * 7, False, CloseCode.PROTOCOL_ERROR),
        (b"\x82\x7f" + (100_001).to_bytes(8, "big"), False, CloseCode.TOO_BIG),
        (b"\x82\x7f\x00\x00\x00\x00\x06\x00\x00\x00", False, CloseCode.TOO_BIG),
    ],
)
def test_what_is_no_frame_is_refused_at_its_header(data: bytes, masked: bool, code: CloseCode) -> None:
    with pytest.raises(WebSocketError) as caught:
        read(data, masked=masked)
    assert caught.value.close_code is code


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_001])
@pytest.mark.parametrize("masked", [True, False])
def test_what_is_written_is_what_an_independent_implementation_writes(size: int, masked: bool) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    payload = payload[:size]
    written = encode_frame(Opcode.TEXT, payload, masked=masked)

    assert read(written, masked=masked) == [(Opcode.TEXT, True, payload)]
    if not masked:
        assert written == ReferenceFrame(ReferenceOpcode.TEXT, payload).serialize(mask=False)


def test_masking_twice_changes_nothing() -> None:
    assert apply_mask(apply_mask(b"hello", b"\x01\x02\x03\x04"), b"\x01\x02\x03\x04") == b"hello"


@pytest.mark.parametrize("reason", ["short", "x" * 200, "é" * 100, "💥" * 50])
def test_a_close_reason_is_cut_between_characters(reason: str) -> None:
    [(opcode, _, payload)] = read(encode_close(1008, reason, masked=False))

    assert opcode is Opcode.CLOSE
    assert payload[:2] == (1008).to_bytes(2, "big")
    assert len(payload) <= 125
    assert reason.startswith(payload[2:].decode())


def assemble(*frames: bytes, max_payload: int = 100) -> list[bytes]:
    reader = FrameReader(masked=False, max_payload=1000)
    assembler = MessageAssembler(max_payload)
    reader.feed(b"".join(frames))
    messages = []
    while (frame := reader.next_frame()) is not None:
        message = assembler.add(frame)
        if message is not None:
            messages.append(message)
    return messages


def test_fragments_become_one_message() -> None:
    assert assemble(b"\x01\x03Hel", b"\x00\x01l", b"\x80\x01o", b"\x82\x01x") == [b"Hello", b"x"]


@pytest.mark.parametrize("frames", [[b"\x80\x01o"], [b"\x01\x01a", b"\x01\x01b"], [b"\x81\x01a", b"\x80\x01b"]])
def test_fragments_out_of_order_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(WebSocketError) as caught:
        assemble(*frames)
    assert caught.value.close_code is CloseCode.PROTOCOL_ERROR


def test_many_small_fragments_are_too_big_together() -> None:
    with pytest.raises(WebSocketError) as caught:
        assemble(b"\x01\x32" + b"x" * 50, b"\x00\x32" + b"x" * 50, b"\x00\x01x")
    assert caught.value.close_code is CloseCode.TOO_BIG


@pytest.mark.parametrize("masked", [True, False])
def test_the_tracker_knows_every_boundary_at_every_byte(masked: bool) -> None:
    frames = [encode_frame(Opcode.BINARY, b"x" * size, masked=masked) for size in (0, 3, 125, 126, 300, 65_536, 0)]
    boundaries, position = set(), 0
    for frame in frames:
        position += len(frame)
        boundaries.add(position)
    data = b"".join(frames)
    tracker = FrameTracker(masked=masked)
    for count in range(1, len(data) + 1):
        tracker.advance(data[count - 1 : count])
        assert tracker.at_boundary is (count in boundaries), count


def test_what_was_not_read_is_kept_for_the_relay() -> None:
    reader = FrameReader(masked=False, max_payload=100)
    reader.feed(b"\x81\x01a\x81\x05He")
    assert reader.next_frame() is not None
    assert reader.next_frame() is None

    assert reader.take_rest() == b"\x81\x05He"
    assert reader.take_rest() == b""
