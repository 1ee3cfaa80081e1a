from __future__ import annotations

import pytest

from gatepass.errors import DeniedError, ProtocolError
from gatepass.exchange import Exchange
from gatepass.frames import Message, decode_body, encode_frame
from gatepass.messages import MAX_ID, StatusRequest, WhoamiRequest
from gatepass.patience import CutOffError

OK: Message = {"id": 1, "ok": True, "state": "running"}


def asked() -> Exchange:
    exchange = Exchange()
    exchange.request(StatusRequest())
    return exchange


def test_requests_are_numbered() -> None:
    exchange = Exchange()
    assert decode_body(exchange.request(StatusRequest())[4:]) == {"v": 1, "id": 1, "op": "status"}
    assert decode_body(exchange.request(WhoamiRequest())[4:]) == {"v": 1, "id": 2, "op": "whoami"}


def test_numbers_start_again_before_they_leave_the_range() -> None:
    exchange = Exchange()
    exchange._id = MAX_ID
    assert decode_body(exchange.request(StatusRequest())[4:])["id"] == 1


def test_a_reply_may_come_byte_by_byte() -> None:
    exchange, frame = asked(), encode_frame(OK)
    assert [exchange.receive(frame[i : i + 1]) for i in range(len(frame) - 1)] == [None] * (len(frame) - 1)
    assert exchange.receive(frame[-1:]) == {"state": "running"}


def test_an_error_reply_is_raised() -> None:
    with pytest.raises(DeniedError, match="not for you"):
        asked().receive(encode_frame({"id": 1, "ok": False, "error": {"code": "denied", "message": "not for you"}}))


def test_the_end_before_a_reply_and_in_the_middle_of_one_differ() -> None:
    with pytest.raises(ConnectionResetError):
        asked().receive(b"")
    exchange = asked()
    exchange.receive(b"\0")
    with pytest.raises(CutOffError):
        exchange.receive(b"")


@pytest.mark.parametrize(
    "data",
    [
        encode_frame({**OK, "id": 2}),
        encode_frame(OK) + b"\0",
        encode_frame(OK) * 2,
        encode_frame({"id": 1}),
        b"\xff\xff\xff\xff",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
    ids=["another id", "a byte more", "two replies", "neither yes nor no", "4 GB", "another protocol"],
)
def test_what_is_not_the_reply_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        asked().receive(data)
