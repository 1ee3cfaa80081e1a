"""OpenClaw's first frame: what is read of it, and what goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gatepass.errors import ErrorCode, GatepassError, TokenError, TryLaterError
from gatepass.revocations import locked_error, revoked_error
from gatepass_gateway.connect_frame import (
    answer_to,
    error_frame,
    is_challenge,
    parse_connect,
    refuse_misplaced_secrets,
    with_identity,
)
from gatepass_gateway.refused import RefusedError
from support.gateway import Minter, connect_message

TOKEN = Minter().token()
OTHER = Minter().token()


def payload(auth: Any = None, **params: Any) -> bytes:
    return json.dumps(connect_message(auth, **params)).encode()


def refusal(data: bytes) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        parse_connect(data)
    return caught.value


def test_a_connect_request_is_read() -> None:
    frame = parse_connect(payload({"password": TOKEN}, scopes=["operator.read", "operator.read"]))

    assert (frame.id, frame.role, frame.secret) == ("1:one", "operator", TOKEN)
    assert frame.scopes == {"operator.read"}
    assert not frame.brings_device_credential


def test_a_request_without_role_auth_and_scopes_is_an_operators() -> None:
    frame = parse_connect(b'{"type":"req","id":"1","method":"connect","params":{}}')

    assert (frame.role, frame.secret, frame.scopes) == ("operator", None, frozenset())


@pytest.mark.parametrize(
    ("auth", "secret"),
    [
        ({"token": TOKEN}, TOKEN),
        ({"password": TOKEN, "token": "other"}, TOKEN),
        ({"password": "other", "token": TOKEN}, TOKEN),
        ({"password": TOKEN, "token": TOKEN}, TOKEN),
        ({"password": "other", "token": "another"}, "other"),
        ({"password": None, "token": "another"}, "another"),
        ({"deviceToken": TOKEN}, None),
        ({}, None),
    ],
)
def test_the_secret_is_the_token_wherever_it_is(auth: dict[str, Any], secret: str | None) -> None:
    assert parse_connect(payload(auth)).secret == secret


def test_two_different_tokens_are_refused() -> None:
    assert refusal(payload({"password": TOKEN, "token": OTHER})).code is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize(
    ("auth", "params", "brings"),
    [
        ({"deviceToken": "x"}, {}, True),
        ({"bootstrapToken": "x"}, {}, True),
        ({"token": "x"}, {"device": {"id": "x"}}, True),
        ({"token": "x"}, {}, False),
        ({"password": "x"}, {"device": {"id": "x"}}, False),
        ({"deviceToken": ""}, {}, False),
        (None, {"device": {"id": "x"}}, False),
    ],
)
def test_a_device_credential_is_noticed(auth: dict[str, Any] | None, params: dict[str, Any], brings: bool) -> None:
    assert parse_connect(payload(auth, **params)).brings_device_credential is brings


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"connect",
        b"[]",
        b"null",
        b"{}",
        b'"connect"',
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"type":"req","id":"1","method":"status","params":{}}',
        b'{"type":"event","id":"1","method":"connect","params":{}}',
        b'{"type":"req","id":1,"method":"connect","params":{}}',
        b'{"type":"req","id":"1","method":"connect","params":[]}',
        b'{"type":"req","id":"1","method":"connect"}',
        b'{"type":"req","id":"1","method":"connect","params":{"auth":"x"}}',
        b'{"type":"req","id":"1","method":"connect","params":{"auth":null}}',
        b'{"type":"req","id":"1","method":"connect","params":{"auth":{"password":1}}}',
        b'{"type":"req","id":"1","method":"connect","params":{"role":1}}',
        b'{"type":"req","id":"1","method":"connect","params":{"scopes":"operator.admin"}}',
        b'{"type":"req","id":"1","method":"connect","params":{"scopes":[1]}}',
        b'{"type":"req","id":"1","method":"connect","params":{"auth":{},"auth":{}}}',
        b'{"type":"req","id":"1","method":"connect","params":{"x":{"a":1,"a":2}}}',
        b'{"type":"req","id":"1","id":"2","method":"connect","params":{}}',
        b'{"type":"req","id":"1","method":"connect","params":{"x":NaN}}',
        b'{"type":"req","id":"1","method":"connect","params":{"x":1e999}}',
        b'{"type":"req","id":"1","method":"connect","params":{"x":' + b"9" * 5_000 + b"}}",
        b'{"type":"req","id":"1","method":"connect","params":{"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}}",
        b'{"type":"req","id":"1","method":"connect","params":{}} {}',
    ],
)
def test_what_two_parsers_could_read_in_two_ways_is_refused(data: bytes) -> None:
    assert refusal(data).code is ErrorCode.BAD_REQUEST


def test_beside_an_identity_no_credential_of_the_frame_goes_on() -> None:
    frame = parse_connect(payload({"password": TOKEN, "deviceToken": "secret"}, device={"id": "x"}, locale="de"))

    sent = json.loads(with_identity(frame, frozenset({"b", "a"})))

    assert sent["params"]["scopes"] == ["a", "b"]
    assert sent["params"]["locale"] == "de"
    assert "auth" not in sent["params"]
    assert "device" not in sent["params"]
    assert {key: sent[key] for key in ("type", "id", "method")} == {"type": "req", "id": "1:one", "method": "connect"}


def test_the_frame_itself_stays_as_it_was() -> None:
    frame = parse_connect(payload({"password": TOKEN}))
    with_identity(frame, frozenset())

    assert frame.message["params"]["auth"] == {"password": TOKEN}


@pytest.mark.parametrize(
    "params",
    [
        {"locale": TOKEN},
        {"client": {"id": TOKEN}},
        {"caps": ["x", [TOKEN]]},
        {TOKEN: "x"},
        {"userAgent": f"x {TOKEN.replace('.', '%2e')}"},
        {"locale": "gatepass-none.gateway.AAAA"},
    ],
)
def test_a_token_anywhere_else_in_the_frame_is_refused(params: dict[str, Any]) -> None:
    frame = parse_connect(payload({"password": TOKEN}, **params))

    for besides_auth in (True, False):
        with pytest.raises(RefusedError) as caught:
            refuse_misplaced_secrets(frame, besides_auth=besides_auth)
        assert caught.value.code is ErrorCode.SECRET_MISPLACED


def test_a_token_in_auth_is_misplaced_only_where_auth_is_passed_on() -> None:
    frame = parse_connect(payload({"password": TOKEN}, device={"signature": TOKEN}))

    refuse_misplaced_secrets(frame, besides_auth=True)
    with pytest.raises(RefusedError):
        refuse_misplaced_secrets(frame, besides_auth=False)


def test_a_lone_surrogate_does_not_break_anything() -> None:
    frame = parse_connect(b'{"type":"req","id":"\\ud800","method":"connect","params":{"x":"\\udfff","auth":{}}}')
    refuse_misplaced_secrets(frame, besides_auth=False)

    assert b"\\udfff" in with_identity(frame, frozenset())
    assert b"\\ud800" in error_frame(frame.id, RefusedError(ErrorCode.BAD_REQUEST, "no"))


@pytest.mark.parametrize(
    ("error", "code", "begins", "details"),
    [
        (
            TokenError(ErrorCode.TOKEN_EXPIRED, "expired"),
            "INVALID_REQUEST",
            "unauthorized: gateway password mismatch (gatepass: ",
            "AUTH_PASSWORD_MISMATCH",
        ),
        (
            RefusedError(ErrorCode.NO_TOKEN, "denied"),
            "INVALID_REQUEST",
            "unauthorized: gateway password missing (gatepass: ",
            "AUTH_PASSWORD_MISSING",
        ),
        (
            RefusedError(ErrorCode.NO_TOKEN, "later", retry_after=1),
            "UNAVAILABLE",
            "unauthorized: gateway password missing (gatepass: ",
            "AUTH_UNAUTHORIZED",
        ),
        (
            TryLaterError(ErrorCode.UPSTREAM_UNAVAILABLE, "down", retry_after=2),
            "UNAVAILABLE",
            "unavailable (gatepass: ",
            "AUTH_UNAUTHORIZED",
        ),
        # The only code of these at which a long-lived client keeps trying: it is back when the lock is off.
        (
            locked_error(),
            "INVALID_REQUEST",
            "unauthorized: gateway password mismatch (gatepass: ",
            "AUTH_UNAUTHORIZED",
        ),
        (
            revoked_error(),
            "INVALID_REQUEST",
            "unauthorized: gateway password mismatch (gatepass: ",
            "AUTH_PASSWORD_MISMATCH",
        ),
    ],
)
def test_a_refusal_has_the_form_that_openclaws_clients_understand(
    error: GatepassError, code: str, begins: str, details: str
) -> None:
    frame = json.loads(error_frame("7", error))

    assert (frame["type"], frame["id"], frame["ok"]) == ("res", "7", False)
    assert frame["error"]["code"] == code
    assert frame["error"]["message"] == f"{begins}{error.message})"
    assert frame["error"]["details"]["code"] == details
    assert frame["error"].get("retryAfterMs") == (None if error.retry_after is None else error.retry_after * 1000)


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b'{"type":"res","id":"1","ok":true}', True),
        (b'{"type":"res","id":"1","ok":false}', False),
        (b'{"type":"res","id":"1","ok":1}', False),
        (b'{"type":"res","id":"2","ok":true}', None),
        (b'{"type":"event","id":"1","ok":true}', None),
        (b"[]", None),
        (b"\xff", None),
        (b"[" * 50_000, None),
    ],
)
def test_the_gateways_answer_is_recognised(data: bytes, answer: bool | None) -> None:
    assert answer_to(data, "1") is answer


def test_the_challenge_is_recognised() -> None:
    assert is_challenge(b'{"type":"event","event":"connect.challenge","payload":{}}')
    assert not is_challenge(b'{"type":"event","event":"tick"}')
    assert not is_challenge(b"connect.challenge")
