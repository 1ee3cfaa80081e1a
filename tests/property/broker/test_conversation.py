"""Whatever bytes come in whatever pieces: declared replies come out, and nothing is raised."""

from __future__ import annotations

import itertools

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from gatepass.errors import ErrorCode
from gatepass.frames import FrameDecoder, Message, encode_frame
from gatepass.messages import ok_message, parse_request
from gatepass_broker.conversation import Conversation
from gatepass_broker.service import Answer


def echo(message: Message) -> Answer:
    request = parse_request(message)
    return Answer(ok_message(request.id, {}), follows=message["op"] == "follow")


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
operations = st.sampled_from(["issue", "whoami", "status", "verify", "follow", "", "x"])
requests = st.fixed_dictionaries(
    {"v": st.just(1) | values, "id": st.integers(0, 2**32) | values, "op": operations | values},
    optional={"audience": values, "scope": values, "ttl": values, "token": values, "other": values},
)
frames = requests.map(lambda value: framed(msgpack.packb(value))) | st.binary(max_size=40).map(framed)
streams = st.lists(frames | st.binary(max_size=10), max_size=6).map(b"".join)


def outcome(pieces: list[bytes]) -> tuple[bytes, bool, bool]:
    conversation = Conversation(echo)
    out = b""
    for piece in pieces:
        conversation.feed(piece)
        while not conversation.closing:
            replies, count = conversation.replies(2)
            out += replies
            if count < 2:
                break
    return out, conversation.closing, conversation.following


@given(streams, st.lists(st.integers(0, 400), max_size=8))
def test_only_declared_replies_and_the_same_in_any_pieces(stream: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    pieces = [stream[begin:end] for begin, end in itertools.pairwise(edges)]
    whole = outcome([stream])

    assert outcome(pieces) == whole
    decoder = FrameDecoder()
    decoder.feed(whole[0])
    while (reply := decoder.next_message()) is not None:
        assert reply["ok"] is True or reply["error"]["code"] in list(ErrorCode)


@given(st.lists(st.integers(1, 2**32 - 1), max_size=10))
def test_honest_requests_are_answered_one_for_one(ids: list[int]) -> None:
    out, closing, _ = outcome([encode_frame({"v": 1, "id": number, "op": "whoami"}) for number in ids])
    decoder = FrameDecoder()
    decoder.feed(out)

    assert [reply["id"] for reply in iter(decoder.next_message, None)] == ids
    assert not closing
