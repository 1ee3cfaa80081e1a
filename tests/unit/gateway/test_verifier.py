"""The verifier: which tokens count, and with which code the others are refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from gatepass.clock import Moment, now
from gatepass.errors import ErrorCode, TokenError
from gatepass_gateway.verifier import KeySet, Verifier, key_set
from support.gateway import ISSUER, Minter

MINTER = Minter()
OTHER = Minter()
VERIFIER = Verifier("openclaw", key_set(ISSUER, MINTER.jwks()["keys"]))
UID = 1000


def code_of(token: str, *, uid: int | None = UID, verifier: Verifier = VERIFIER, moment: Moment | None = None) -> str:
    with pytest.raises(TokenError) as caught:
        verifier.verify(token, uid, moment or now())
    assert token not in caught.value.message
    return caught.value.code


def test_a_good_token_gives_its_claims() -> None:
    claims = MINTER.claims(uid=UID)
    token = MINTER.token(uid=UID)

    assert VERIFIER.verify(token, UID, now()) == claims


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"audience": "other"}, ErrorCode.TOKEN_WRONG_AUDIENCE),
        ({"issuer": "gatepass:other"}, ErrorCode.TOKEN_WRONG_ISSUER),
        ({"age": 300}, ErrorCode.TOKEN_EXPIRED),
        ({"age": -60}, ErrorCode.TOKEN_NOT_YET_VALID),
        ({"uid": UID + 1}, ErrorCode.TOKEN_WRONG_UID),
    ],
)
def test_a_token_for_another_place_time_or_user_is_refused(changes: dict[str, Any], code: ErrorCode) -> None:
    assert code_of(MINTER.token(**{"uid": UID, **changes})) == code


def test_a_connection_of_unknown_owner_never_has_an_identity() -> None:
    assert code_of(MINTER.token(uid=UID), uid=None) == ErrorCode.TOKEN_WRONG_UID


def test_a_stepped_clock_lengthens_no_life() -> None:
    token = MINTER.token(uid=UID, life=60)
    later = now()

    assert code_of(token, moment=later._replace(boottime=later.boottime + 61)) == ErrorCode.TOKEN_EXPIRED
    assert code_of(token, moment=later._replace(time=later.time + 61)) == ErrorCode.TOKEN_EXPIRED
    assert code_of(token, moment=later._replace(boot_id="f" * 32)) == ErrorCode.TOKEN_WRONG_BOOT


def test_another_brokers_token_is_refused() -> None:
    assert code_of(OTHER.token(uid=UID)) == ErrorCode.TOKEN_UNKNOWN_KEY


def test_the_empty_key_set_verifies_nothing() -> None:
    assert code_of(MINTER.token(uid=UID), verifier=Verifier("openclaw", KeySet())) == ErrorCode.TOKEN_UNKNOWN_KEY


def test_each_part_of_a_token_counts() -> None:
    header, payload, signature = MINTER.token(uid=UID).split(".")
    other_header, other_payload, other_signature = OTHER.token(uid=UID).split(".")

    assert code_of(f"{header}.{other_payload}.{other_signature}") == ErrorCode.TOKEN_BAD_SIGNATURE
    assert code_of(f"{header}.{payload}.{other_signature}") == ErrorCode.TOKEN_BAD_SIGNATURE
    assert code_of(f"{other_header}.{payload}.{signature}") == ErrorCode.TOKEN_UNKNOWN_KEY
    assert code_of(f"{header}.{payload}.") == ErrorCode.TOKEN_BAD_SIGNATURE
    assert code_of(f"{header}.{payload}.{signature}=") == ErrorCode.TOKEN_MALFORMED
    assert code_of(f"{header}.{payload}.{signature}\n") == ErrorCode.TOKEN_MALFORMED
    assert code_of(f"{header}.{payload}") == ErrorCode.TOKEN_MALFORMED
    assert code_of(f" {header}.{payload}.{signature}") == ErrorCode.TOKEN_UNKNOWN_KEY


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none", "kid": MINTER.kid, "typ": "gatepass+jwt"},
        {"alg": "HS256", "kid": MINTER.kid, "typ": "gatepass+jwt"},
        {"alg": "EdDSA", "typ": "gatepass+jwt"},
        {"alg": "EdDSA", "kid": MINTER.kid, "typ": "JWT"},
        {"typ": "gatepass+jwt", "kid": MINTER.kid, "alg": "EdDSA"},
        {"alg": "EdDSA", "kid": MINTER.kid, "typ": "gatepass+jwt", "jku": "http://evil.example"},
        {"alg": "EdDSA", "kid": "../../etc/passwd", "typ": "gatepass+jwt"},
    ],
)
def test_no_header_but_the_one_of_a_trusted_key_is_parsed(header: dict[str, str]) -> None:
    _, payload, signature = MINTER.token(uid=UID).split(".")
    encoded = base64.urlsafe_b64encode(json.dumps(header, separators=(",", ":")).encode()).rstrip(b"=").decode()

    assert code_of(f"{encoded}.{payload}.{signature}") == ErrorCode.TOKEN_UNKNOWN_KEY
    assert code_of(f"{encoded}.{payload}.") == ErrorCode.TOKEN_UNKNOWN_KEY


@pytest.mark.parametrize(
    "key", [{}, {"kty": "RSA"}, {**MINTER.jwks()["keys"][0], "kid": "other"}, {**MINTER.jwks()["keys"][0], "d": "x"}]
)
def test_a_key_of_another_kind_is_not_taken(key: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a gatepass"):
        key_set(ISSUER, [key])
