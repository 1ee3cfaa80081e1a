from __future__ import annotations

import json

import pytest

from gatepass.openclaw import no_token, parse_request, response


def test_a_request_names_ids() -> None:
    data = b'{"protocolVersion":1,"provider":"gatepass","ids":["gateway/password","b"],"more":{}}'
    assert parse_request(data) == ("gateway/password", "b")


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b'{"ids":"x"}', b'{"ids":[1]}', b'{"ids":{}}', b"\xff\xfe", b"[" * 100_000, b"{}"],
    ids=lambda data: repr(data[:12]),
)
def test_anything_else_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any text: it is not shown
        parse_request(data)


def test_the_answer_gives_each_id_its_secret() -> None:
    answer = response({"a": "secret", "\ud800": "x"})
    assert json.loads(answer) == {"protocolVersion": 1, "values": {"a": "secret", "\ud800": "x"}}


def test_no_token_says_why_and_cannot_be_guessed() -> None:
    assert no_token("denied", bytes(16)) == "gatepass-none.denied.AAAAAAAAAAAAAAAAAAAAAA"
