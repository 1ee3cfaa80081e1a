"""The protocol without a socket: which bytes are answered with which."""

from __future__ import annotations

from typing import Any

import pytest

from gatepass.errors import DeniedError, ErrorCode
from gatepass.frames import FrameDecoder, Message, encode_frame
from gatepass.messages import ok_message, parse_request
from gatepass_broker.conversation import Conversation
from gatepass_broker.service import Answer


def echo(message: Message) -> Answer:
    request = parse_request(message)
    return Answer(ok_message(request.id, {"op": message["op"]}), follows=message["op"] == "follow")


def request(request_id: int, op: str = "whoami", **fields: Any) -> bytes:
    return encode_frame({"v": 1, "id": request_id, "op": op, **fields})


def messages(data: bytes) -> list[Message]:
    decoder = FrameDecoder()
    decoder.feed(data)
    found = []
    while (message := decoder.next_message()) is not None:
        found.append(message)
    return found


def test_replies_come_in_order() -> None:
    conversation = Conversation(echo)
    conversation.feed(b"".join(request(number) for number in range(1, 6)))
    replies, count = conversation.replies(10)

    assert count == 5
    assert [message["id"] for message in messages(replies)] == [1, 2, 3, 4, 5]


def test_only_so_many_are_answered_at_a_time() -> None:
    conversation = Conversation(echo)
    conversation.feed(b"".join(request(number) for number in range(1, 6)))

    assert [conversation.replies(2)[1] for _ in range(4)] == [2, 2, 1, 0]


def test_a_frame_in_single_bytes() -> None:
    conversation = Conversation(echo)
    for byte in request(7)[:-1]:
        conversation.feed(bytes([byte]))
        assert conversation.replies(1) == (b"", 0)
        assert conversation.is_partial
    conversation.feed(request(7)[-1:])

    assert messages(conversation.replies(1)[0]) == [{"id": 7, "ok": True, "op": "whoami"}]
    assert not conversation.is_partial


@pytest.mark.parametrize(
    ("data", "request_id"),
    [
        (b"\xff\xff\xff\xff", 0),
        (b"\0\0\0\1\xc1", 0),
        (encode_frame({"v": 1, "op": "whoami"}), 0),
        (encode_frame({"v": 1, "id": True, "op": "whoami"}), 0),
        (encode_frame({"v": 2, "id": 9, "op": "whoami"}), 9),
    ],
)
def test_what_breaks_the_protocol_is_answered_and_ends_it(data: bytes, request_id: int) -> None:
    conversation = Conversation(echo)
    conversation.feed(data + request(8))
    (reply,) = messages(conversation.replies(10)[0])

    assert (reply["id"], reply["ok"]) == (request_id, False)
    assert conversation.closing
    assert conversation.replies(10) == (b"", 0)


def test_an_unknown_operation_ends_nothing() -> None:
    conversation = Conversation(echo)
    conversation.feed(request(1, "dance") + request(2))
    first, second = messages(conversation.replies(10)[0])

    assert first["error"]["code"] == "unknown_operation"
    assert second["ok"]


def test_an_error_of_the_answer_is_sent() -> None:
    def refuse(message: Message) -> Answer:
        raise DeniedError(ErrorCode.DENIED, "no")

    conversation = Conversation(refuse)
    conversation.feed(request(3))

    assert messages(conversation.replies(1)[0]) == [
        {"id": 3, "ok": False, "error": {"code": "denied", "message": "no"}}
    ]


def test_a_follower_gets_every_change_under_its_id() -> None:
    conversation = Conversation(echo)
    assert conversation.changed({"seq": 1}) == b""
    conversation.feed(request(5, "follow"))
    conversation.replies(1)

    assert conversation.following
    assert messages(conversation.changed({"seq": 2})) == [{"id": 5, "ok": True, "seq": 2}]


def test_a_follower_that_asks_for_more_is_cut_off() -> None:
    conversation = Conversation(echo)
    conversation.feed(request(5, "follow") + request(6))
    _, error = messages(conversation.replies(10)[0])

    assert error["error"]["code"] == "malformed"
    assert conversation.closing
