"""Refusals as HTTP answers."""

from __future__ import annotations

import json

import pytest

from gatepass.errors import ErrorCode, GatepassError, TokenError, TryLaterError
from gatepass_gateway.answers import answer
from gatepass_gateway.refused import RefusedError


@pytest.mark.parametrize("code", [code for code in ErrorCode if code.startswith("token_")])
def test_every_token_fault_is_401_with_its_own_code(code: ErrorCode) -> None:
    reply = answer(TokenError(code, "the reason"))

    assert reply.status == 401
    assert json.loads(reply.body) == {
        "ok": False,
        "error": {"message": "gatepass: the reason", "type": "unauthorized", "code": f"gatepass_{code}"},
    }
    assert dict(reply.headers)[b"www-authenticate"].startswith(b"Bearer")


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_an_answer_whose_length_is_right(code: ErrorCode) -> None:
    reply = answer(RefusedError(code, "why ✗"))
    headers = dict(reply.headers)

    assert 400 <= reply.status < 600
    assert int(headers[b"content-length"]) == len(reply.body)
    assert headers[b"connection"] == b"close"
    assert headers[b"cache-control"] == b"no-store"


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (TryLaterError(ErrorCode.UPSTREAM_UNAVAILABLE, "down", retry_after=2), 503, b"2"),
        (TryLaterError(ErrorCode.UPSTREAM_IMPOSTOR, "taken", retry_after=2), 503, b"2"),
        (RefusedError(ErrorCode.TOO_MANY_CONNECTIONS, "full", retry_after=3), 503, b"3"),
        (RefusedError(ErrorCode.IDENTITY_FORGED, "no"), 403, None),
        (RefusedError(ErrorCode.BAD_REQUEST, "what"), 400, None),
        (RefusedError(ErrorCode.NO_TOKEN, "none"), 401, None),
    ],
)
def test_the_status_says_whether_to_try_again(error: GatepassError, status: int, retry_after: bytes | None) -> None:
    reply = answer(error)

    assert reply.status == status
    assert dict(reply.headers).get(b"retry-after") == retry_after
