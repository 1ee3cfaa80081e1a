from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatepass.errors import ProtocolError
from gatepass.frames import MAX_DEPTH, MAX_FRAME, FrameDecoder, Message, decode_body, encode_frame

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=40)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
shallow = st.dictionaries(st.text(max_size=20), scalars | st.lists(scalars, max_size=5), max_size=8)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_protocol_error(body: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(decode_body(body), dict)


@given(
    st.recursive(
        scalars | st.floats() | st.binary(), lambda v: st.lists(v) | st.dictionaries(scalars, v), max_leaves=20
    )
)
def test_any_msgpack_is_a_message_or_a_protocol_error(value: Any) -> None:
    with contextlib.suppress(ProtocolError):
        decode_body(msgpack.packb(value))


@given(shallow)
def test_what_was_encoded_is_decoded(message: Message) -> None:
    assert decode_body(encode_frame(message)[4:]) == message


@given(st.lists(shallow, max_size=5), st.data())
def test_a_stream_may_be_cut_anywhere(messages: list[Message], data: st.DataObject) -> None:
    stream = b"".join(map(encode_frame, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    decoder, seen = FrameDecoder(), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        decoder.feed(stream[begin:end])
        while (message := decoder.next_message()) is not None:
            seen.append(message)
    assert seen == messages
    assert not decoder.is_partial


@given(st.binary(max_size=200))
def test_any_stream_gives_messages_or_a_protocol_error(stream: bytes) -> None:
    decoder = FrameDecoder()
    decoder.feed(stream)
    with contextlib.suppress(ProtocolError):
        while decoder.next_message() is not None:
            pass


@given(st.integers(MAX_FRAME + 1, 2**32 - 1))
def test_a_length_beyond_the_bound_is_refused_before_its_body(length: int) -> None:
    decoder = FrameDecoder()
    decoder.feed(length.to_bytes(4, "big"))
    with pytest.raises(ProtocolError):
        decoder.next_message()


@pytest.mark.parametrize("kind", ["array", "map"])
@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 600, 20_000])
def test_nesting_ends_where_it_is_said_to(kind: str, depth: int) -> None:
    inner = b"\x91" * (depth - 1) if kind == "array" else b"\x81\xa1a" * (depth - 1)
    body = b"\x81\xa1a" + inner + b"\x01"
    if depth <= MAX_DEPTH:
        decode_body(body)
    else:
        with pytest.raises(ProtocolError):
            decode_body(body)


@pytest.mark.parametrize("name", ["array", "map", "str", "bin", "ext"])
def test_a_length_that_promises_4_gb_takes_no_memory(name: str) -> None:
    first = {"array": 0xDD, "map": 0xDF, "str": 0xDB, "bin": 0xC6, "ext": 0xC9}[name]
    with pytest.raises(ProtocolError):
        decode_body(b"\x81\xa1a" + bytes([first]) + b"\xff\xff\xff\xff")


@pytest.mark.parametrize(
    "body",
    [
        b"\x82\xa1a\x01\xa1a\x02",
        b"\x81\xa1a\xca\x7f\xc0\x00\x00",
        b"\x81\xa1a\xc4\x01x",
        b"\x81\xa1a\xd4\x01x",
        b"\x81\xa1a\xd6\xff\x00\x00\x00\x00",
        b"\x81\xa1a\xa1\xff",
        b"\x81\x01\x01",
        b"\x80\x00",
        b"\x90",
        b"",
    ],
    ids=["duplicate", "NaN", "binary", "ext", "timestamp", "not UTF-8", "integer key", "trailing", "list", "empty"],
)
def test_28_what_the_protocol_does_not_have(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_body(body)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "\ud800", {"\udcff": 1}], ids=ascii)
def test_what_fits_into_no_frame_is_a_protocol_error(value: object) -> None:
    with pytest.raises(ProtocolError):
        encode_frame({"a": value})


def test_the_bound_is_the_same_in_both_directions() -> None:
    with pytest.raises(ProtocolError):
        encode_frame({"a": "x" * MAX_FRAME})
