"""The frame reader and tracker against an independent implementation, and against anything at all."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame as ReferenceFrame
from websockets.frames import Opcode as ReferenceOpcode

from gatepass_gateway.ws_frames import FrameReader, FrameTracker, MessageAssembler, MessageTap, WebSocketError

sizes = st.one_of(st.integers(0, 140), st.sampled_from([65_535, 65_536, 66_000]))
data_frames = st.builds(
    lambda opcode, size, fin: ReferenceFrame(opcode, b"\x81" * size, fin),
    st.sampled_from([ReferenceOpcode.TEXT, ReferenceOpcode.BINARY, ReferenceOpcode.CONT]),
    sizes,
    st.booleans(),
)
control_frames = st.builds(
    ReferenceFrame,
    st.sampled_from([ReferenceOpcode.PING, ReferenceOpcode.PONG, ReferenceOpcode.CLOSE]),
    st.binary(max_size=125),
)
streams = st.lists(data_frames | control_frames, max_size=8)
cuts = st.lists(st.integers(0, 200_000), max_size=12)


def pieces(data: bytes, at: list[int]) -> list[bytes]:
    """Cut `data` at any places."""
    places = sorted({min(place, len(data)) for place in at} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


@given(streams, cuts, st.booleans())
def test_reader_and_tracker_agree_with_another_encoder_however_the_stream_is_cut(
    frames: list[ReferenceFrame], at: list[int], masked: bool
) -> None:
    encoded = [frame.serialize(mask=masked) for frame in frames]
    boundaries, position = {0}, 0
    for one in encoded:
        position += len(one)
        boundaries.add(position)
    reader, tracker, read, passed = FrameReader(masked=masked, max_payload=100_000), FrameTracker(masked=masked), [], 0

    for piece in pieces(b"".join(encoded), at):
        reader.feed(piece)
        tracker.advance(piece)
        passed += len(piece)
        assert tracker.at_boundary is (passed in boundaries)
        while (frame := reader.next_frame()) is not None:
            read.append(frame)

    assert [(int(frame.opcode), frame.payload, frame.fin) for frame in read] == [
        (int(frame.opcode), bytes(frame.data), frame.fin) for frame in frames
    ]
    assert [frame.raw for frame in read] == encoded
    assert reader.take_rest() == b""


@given(st.binary(max_size=400), cuts, st.booleans())
def test_any_bytes_are_frames_or_a_websocket_error(data: bytes, at: list[int], masked: bool) -> None:
    reader, assembler = FrameReader(masked=masked, max_payload=200), MessageAssembler(200)
    try:
        for piece in pieces(data, at):
            reader.feed(piece)
            while (frame := reader.next_frame()) is not None:
                assert frame.raw in data
                if frame.opcode < 8:
                    message = assembler.add(frame)
                    assert message is None or len(message) <= 200
    except WebSocketError:
        return


@given(st.binary(max_size=400), cuts, st.booleans())
def test_reader_and_tracker_find_the_same_boundaries_in_any_bytes(data: bytes, at: list[int], masked: bool) -> None:
    tracker, reader = FrameTracker(masked=masked), FrameReader(masked=masked, max_payload=2**63)
    reader.feed(data)
    try:
        while reader.next_frame() is not None:
            pass
    except WebSocketError:
        with_error = True
    else:
        with_error = False
    try:
        for piece in pieces(data, at):
            tracker.advance(piece)
    except WebSocketError:
        assert with_error
        return
    assert not with_error
    assert tracker.at_boundary is (reader.take_rest() == b"")


fragments = st.lists(st.binary(max_size=200), min_size=1, max_size=4)
opcodes = st.sampled_from([ReferenceOpcode.TEXT, ReferenceOpcode.BINARY])


def as_frames(opcode: ReferenceOpcode, parts: list[bytes], between: list[ReferenceFrame]) -> list[ReferenceFrame]:
    """Return a message's fragments, with control frames in between."""
    frames = []
    for number, part in enumerate(parts):
        frames.append(ReferenceFrame(ReferenceOpcode.CONT if number else opcode, part, number == len(parts) - 1))
        frames += between
    return frames


messages = st.lists(st.tuples(opcodes, fragments, st.lists(control_frames, max_size=1)), max_size=5)


@given(messages, cuts, st.booleans())
def test_a_tap_gives_whole_messages_up_to_its_limit_however_the_stream_is_cut(
    sent: list[tuple[ReferenceOpcode, list[bytes], list[ReferenceFrame]]], at: list[int], masked: bool
) -> None:
    data = b"".join(frame.serialize(mask=masked) for message in sent for frame in as_frames(*message))
    seen: list[bytes] = []
    skipped: list[None] = []
    tap = MessageTap(
        masked=masked,
        max_payload=300,
        is_wanted=lambda: True,
        on_message=seen.append,
        on_too_big=lambda: skipped.append(None),
    )
    for piece in pieces(data, at):
        tap.advance(piece)

    whole = [b"".join(parts) for _, parts, _ in sent]
    assert seen == [message for message in whole if len(message) <= 300]
    assert len(skipped) == len(whole) - len(seen)
    assert tap.at_boundary


@given(st.binary(max_size=400), cuts, st.booleans())
def test_a_tap_finds_faults_where_a_tracker_does(data: bytes, at: list[int], masked: bool) -> None:
    tap = MessageTap(
        masked=masked, max_payload=50, is_wanted=lambda: True, on_message=lambda _: None, on_too_big=lambda: None
    )
    tracker = FrameTracker(masked=masked)
    for piece in pieces(data, at):
        faults = []
        for one in (tap, tracker):
            try:
                one.advance(piece)
            except WebSocketError as error:
                faults.append(str(error))
        assert len(faults) in (0, 2)
        if faults:
            return
        assert tap.at_boundary is tracker.at_boundary
