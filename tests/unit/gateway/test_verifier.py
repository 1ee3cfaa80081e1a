"""The verifier: which tokens count, and with which code the others are refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from gatepass.claims import Confirmation, Process
from gatepass.clock import Moment, now
from gatepass.errors import ErrorCode, GatepassError, TokenError
from gatepass.revocations import Cut, Revocation, Standing
from gatepass.tokens import Presenter
from gatepass_gateway.verifier import KeySet, Verifier, key_set
from support.gateway import ISSUER, Minter

MINTER = Minter()
OTHER = Minter()
VERIFIER = Verifier("openclaw", key_set(ISSUER, MINTER.jwks()["keys"]))
UID = 1000


def code_of(token: str, *, uid: int | None = UID, verifier: Verifier = VERIFIER, moment: Moment | None = None) -> str:
    with pytest.raises(TokenError) as caught:
        verifier.verify(token, Presenter(uid), moment or now())
    assert token not in caught.value.message
    return caught.value.code


def test_a_good_token_gives_its_claims() -> None:
    claims = MINTER.claims(uid=UID)
    token = MINTER.token(uid=UID)

    assert VERIFIER.verify(token, Presenter(UID), now()) == claims


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


BOUND: dict[str, Any] = {"uid": UID, "confirmation": Confirmation(UID, cgroup=7, process=Process(8, 9))}
PRESENTER = Presenter(UID, lambda cgroup: cgroup == 7, lambda process: process == Process(8, 9))
REVOKED = Verifier("openclaw", VERIFIER.keys, Standing(revocations=(Revocation(Cut.ALL, "", 2**40),)))


def test_a_token_that_is_bound_more_closely_counts_where_all_of_it_holds() -> None:
    token = MINTER.token(**BOUND)

    assert VERIFIER.verify(token, PRESENTER, now()) == MINTER.claims(**BOUND)
    assert refusal(token, PRESENTER._replace(is_in_cgroup=lambda _: False)) == ErrorCode.TOKEN_WRONG_UNIT
    assert refusal(token, PRESENTER._replace(is_alive=lambda _: False)) == ErrorCode.TOKEN_PROCESS_ENDED
    assert refusal(token, Presenter(UID)) == ErrorCode.TOKEN_WRONG_UNIT


def refusal(token: str, presenter: Presenter, verifier: Verifier = VERIFIER) -> str:
    with pytest.raises(GatepassError) as caught:
        verifier.verify(token, presenter, now())
    return caught.value.code


def test_only_its_owner_is_told_that_a_token_was_revoked() -> None:
    token = MINTER.token(**BOUND)

    assert refusal(token, PRESENTER, REVOKED) == ErrorCode.TOKEN_REVOKED
    assert refusal(token, PRESENTER._replace(uid=UID + 1), REVOKED) == ErrorCode.TOKEN_WRONG_UID
    assert refusal(token, PRESENTER._replace(is_in_cgroup=lambda _: False), REVOKED) == ErrorCode.TOKEN_WRONG_UNIT


def test_under_lock_every_token_is_told_the_same() -> None:
    locked = VERIFIER._replace(standing=Standing(locked=True))

    for token in (MINTER.token(**BOUND), MINTER.token(uid=UID, age=1_000), OTHER.token(), "no token"):
        assert refusal(token, PRESENTER, locked) == ErrorCode.LOCKED


def test_a_token_that_ended_counts_again_where_nothing_else_is_against_it() -> None:
    claims = MINTER.claims(**BOUND, age=1_000)

    assert VERIFIER.verify_again(claims, PRESENTER) == claims
    for verifier, presenter, code in (
        (REVOKED, PRESENTER, ErrorCode.TOKEN_REVOKED),
        (VERIFIER._replace(audience="other"), PRESENTER, ErrorCode.TOKEN_WRONG_AUDIENCE),
        (VERIFIER._replace(keys=KeySet("gatepass:other")), PRESENTER, ErrorCode.TOKEN_WRONG_AUDIENCE),
        (VERIFIER, PRESENTER._replace(is_alive=lambda _: False), ErrorCode.TOKEN_PROCESS_ENDED),
        (VERIFIER, PRESENTER._replace(uid=None), ErrorCode.TOKEN_WRONG_UID),
    ):
        with pytest.raises(TokenError) as caught:
            verifier.verify_again(claims, presenter)
        assert caught.value.code == code
