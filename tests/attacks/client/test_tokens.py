"""Attacks 33 to 36, 39 and 42, on `check_token`: tokens that must not be accepted, and what is said about them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest

from gatepass.claims import claims_to_json
from gatepass.clock import Moment
from gatepass.errors import ErrorCode, TokenError
from gatepass.tokens import Expected, Presenter, b64encode, check_binding, check_token, header, key_table
from support.client import MOMENT, SigningKey, claims_at, expected_at

KEY, OTHER_KEY = SigningKey(), SigningKey()
KEYS = key_table([KEY.verification_key()])
GOOD = KEY.sign(claims_at())
HEADER = {"alg": "EdDSA", "kid": KEY.kid, "typ": "gatepass+jwt"}


def code_of(token: str, expected: Expected | None = None) -> ErrorCode:
    with pytest.raises(TokenError) as caught:
        check_token(token, KEYS, expected or expected_at())
    assert token[:20] not in caught.value.message or not token
    return caught.value.code


def forged(protected: dict[str, Any] | bytes, sign: Callable[[bytes], bytes] = KEY.private.sign) -> str:
    raw = protected if isinstance(protected, bytes) else json.dumps(protected, separators=(",", ":")).encode()
    payload = GOOD.split(".")[1]
    signing_input = f"{b64encode(raw)}.{payload}"
    return f"{signing_input}.{b64encode(sign(signing_input.encode()))}"


def signed_claims(change: Callable[[dict[str, Any]], object]) -> str:
    claims = claims_to_json(claims_at())
    change(claims)
    return signed_payload(json.dumps(claims).encode())


def signed_payload(payload: bytes) -> str:
    signing_input = f"{header(KEY.kid)}.{b64encode(payload)}"
    return f"{signing_input}.{b64encode(KEY.private.sign(signing_input.encode()))}"


def hmac_with_public_key(data: bytes) -> bytes:
    return hmac.new(KEY.public, data, hashlib.sha256).digest()


def test_the_good_token_is_accepted() -> None:
    assert check_token(GOOD, KEYS, expected_at()) == claims_at()


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "HS256", "RS256", "ES256", "Ed25519", "eddsa", "", None, 1])
def test_33_another_algorithm_is_an_unknown_key(alg: object) -> None:
    assert code_of(forged({**HEADER, "alg": alg})) is ErrorCode.TOKEN_UNKNOWN_KEY


def test_33_no_algorithm() -> None:
    assert code_of(forged({"kid": KEY.kid, "typ": "gatepass+jwt"})) is ErrorCode.TOKEN_UNKNOWN_KEY


@pytest.mark.parametrize("protected", [HEADER, {**HEADER, "alg": "HS256"}], ids=["our header", "HS256"])
def test_33_the_public_key_as_hmac_secret(protected: dict[str, Any]) -> None:
    assert code_of(forged(protected, hmac_with_public_key)) in (
        ErrorCode.TOKEN_BAD_SIGNATURE,
        ErrorCode.TOKEN_UNKNOWN_KEY,
    )


@pytest.mark.parametrize("signature", ["", "AA", b64encode(bytes(64)), b64encode(bytes(63)), b64encode(bytes(65))])
def test_33_no_signature_or_an_empty_one(signature: str) -> None:
    assert code_of(f"{GOOD.rpartition('.')[0]}.{signature}") is ErrorCode.TOKEN_BAD_SIGNATURE


def test_33_another_key_under_our_kid() -> None:
    assert code_of(forged(HEADER, OTHER_KEY.private.sign)) is ErrorCode.TOKEN_BAD_SIGNATURE


@pytest.mark.parametrize(
    "protected",
    [
        {**HEADER, "kid": "../../etc/passwd"},
        {**HEADER, "kid": OTHER_KEY.kid},
        {**HEADER, "jwk": {"kty": "OKP", "crv": "Ed25519", "x": b64encode(OTHER_KEY.public)}},
        {**HEADER, "jku": "https://example.com/keys"},
        {**HEADER, "x5u": "https://example.com/cert"},
        {**HEADER, "crit": ["exp"]},
        {**HEADER, "b64": False},
        {**HEADER, "typ": "JWT"},
        {"kid": KEY.kid, "alg": "EdDSA", "typ": "gatepass+jwt"},
        b'{"alg":"EdDSA","alg":"EdDSA","kid":"x","typ":"gatepass+jwt"}',
        b' {"alg":"EdDSA"}',
        b"",
    ],
    ids=["path", "another", "jwk", "jku", "x5u", "crit", "b64", "typ", "order", "twice", "space", "empty"],
)
def test_34_the_header_is_ours_to_the_byte(protected: dict[str, Any] | bytes) -> None:
    assert code_of(forged(protected)) is ErrorCode.TOKEN_UNKNOWN_KEY


@pytest.mark.parametrize(
    "token",
    [
        f" {GOOD}",
        f"{GOOD}\n",
        GOOD.replace(".", ". ", 1),
        GOOD.replace(".", "=.", 1),
        f"{GOOD}=",
        f"{GOOD}.",
        f"{GOOD}.{GOOD}",
        GOOD.replace(".", ".."),
        GOOD.rpartition(".")[0],
        "",
        ".",
        "..",
        "\u0435" + GOOD[1:],
        GOOD + "\ud800",
        "x" * 5_000,
    ],
)
def test_34_text_around_or_inside_a_token(token: str) -> None:
    assert code_of(token) in (
        ErrorCode.TOKEN_MALFORMED,
        ErrorCode.TOKEN_UNKNOWN_KEY,
        ErrorCode.TOKEN_BAD_SIGNATURE,
    )


def test_34_base64url_that_is_not_canonical() -> None:
    """The last character of 64 bytes carries four bits that mean nothing: sixteen spellings of one signature."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    start = alphabet.index(GOOD[-1]) & 0b110000
    spellings = [GOOD[:-1] + alphabet[start | bits] for bits in range(16)]
    assert all(base64.urlsafe_b64decode(s.split(".")[2] + "==") for s in spellings)
    refused = [spelling for spelling in spellings if spelling != GOOD]
    assert len(refused) == 15
    for spelling in refused:
        assert code_of(spelling) is ErrorCode.TOKEN_MALFORMED


@pytest.mark.parametrize("value", ["x", "1", 1.5, 1e300, -1, True, None, [1], {}, 2**53 + 1, 10**400])
@pytest.mark.parametrize("claim", ["exp", "iat", "nbf"])
def test_35_times_are_whole_numbers_in_range(claim: str, value: object) -> None:
    assert code_of(signed_claims(lambda claims: claims.update({claim: value}))) is ErrorCode.TOKEN_MALFORMED


@pytest.mark.parametrize("claim", claims_to_json(claims_at()))
def test_35_no_claim_may_be_missing(claim: str) -> None:
    assert code_of(signed_claims(lambda claims: claims.pop(claim))) is ErrorCode.TOKEN_MALFORMED


@pytest.mark.parametrize("value", [None, 1, True, [], ["openclaw"], {}, "", "a\nb", "a\0b"])
@pytest.mark.parametrize("claim", ["iss", "sub", "aud", "jti"])
def test_35_names_are_printable_strings(claim: str, value: object) -> None:
    assert code_of(signed_claims(lambda claims: claims.update({claim: value}))) is ErrorCode.TOKEN_MALFORMED


@pytest.mark.parametrize("value", [None, -1, 2**32 - 1, 2**32, "1000", 1000.0, True])
def test_35_the_uid_is_one(value: object) -> None:
    assert code_of(signed_claims(lambda claims: claims.update(cnf={"uid": value}))) is ErrorCode.TOKEN_MALFORMED


def test_35_a_condition_that_is_not_known_is_not_met() -> None:
    token = signed_claims(lambda claims: claims["cnf"].update(process=7))
    assert code_of(token) is ErrorCode.TOKEN_MALFORMED


@pytest.mark.parametrize(
    "payload",
    [b"", b"null", b"[]", b"{", b"\xff", b'{"exp":NaN}', b'{"a":1,"a":1}', b"[" * 3_000, b'{"x":1}', b"1" * 3_000],
    ids=lambda payload: repr(payload[:10]),
)
def test_35_a_payload_that_is_none(payload: bytes) -> None:
    assert code_of(signed_payload(payload)) is ErrorCode.TOKEN_MALFORMED


def test_35_another_issuer() -> None:
    assert code_of(KEY.sign(claims_at(issuer="gatepass:evil"))) is ErrorCode.TOKEN_WRONG_ISSUER


@pytest.mark.parametrize("audience", ["other", "Openclaw", "openclaw ", "openclaw,other"])
def test_36_another_audience(audience: str) -> None:
    assert code_of(KEY.sign(claims_at(audience=audience))) is ErrorCode.TOKEN_WRONG_AUDIENCE


@pytest.mark.parametrize("uid", [0, 999, 1001, 2**32 - 1, None])
def test_36_another_user(uid: int | None) -> None:
    claims = check_token(GOOD, KEYS, expected_at())
    check_binding(claims, Presenter(1000))
    with pytest.raises(TokenError) as caught:
        check_binding(claims, Presenter(uid))
    assert caught.value.code is ErrorCode.TOKEN_WRONG_UID


HOUR = 3600


def later(seconds: float, *, wall: float = 0.0) -> Expected:
    """Return what is expected `seconds` later, on a wall clock that was stepped by `wall`."""
    return expected_at(Moment(MOMENT.time + seconds + wall, MOMENT.boottime + seconds, MOMENT.boot_id))


@pytest.mark.parametrize("wall", [-HOUR, -300, 0])
def test_39_a_clock_that_is_set_back_lengthens_no_life(wall: float) -> None:
    check_token(GOOD, KEYS, later(299, wall=wall))
    assert code_of(GOOD, later(300, wall=wall)) is ErrorCode.TOKEN_EXPIRED


def test_39_a_clock_that_is_set_forward_only_shortens_it() -> None:
    assert code_of(GOOD, later(1, wall=HOUR)) is ErrorCode.TOKEN_EXPIRED


def test_39_time_asleep_counts() -> None:
    """CLOCK_BOOTTIME goes on while the machine is suspended, and a token with it."""
    assert code_of(GOOD, later(HOUR, wall=-HOUR)) is ErrorCode.TOKEN_EXPIRED


def test_39_a_token_of_another_boot() -> None:
    expected = expected_at(MOMENT._replace(boot_id="1" * 32))
    assert code_of(GOOD, expected) is ErrorCode.TOKEN_WRONG_BOOT


def test_39_a_token_of_the_future() -> None:
    assert code_of(GOOD, later(-60)) is ErrorCode.TOKEN_NOT_YET_VALID
    check_token(GOOD, KEYS, later(-3))


def test_42_no_text_reveals_claims_or_token() -> None:
    secret = claims_at(issuer="gatepass:hidden", subject="hidden@example.com", audience="hidden", token_id="hidden")
    for token in (KEY.sign(secret), KEY.sign(secret)[:-3] + "AAA", OTHER_KEY.sign(secret), KEY.sign(secret) + "\n"):
        with pytest.raises(TokenError) as caught:
            check_token(token, KEYS, expected_at())
        assert "hidden" not in str(caught.value)
        assert not any(part and part in str(caught.value) for part in token.split("."))


def test_42_the_reason_before_the_signature_is_the_same_whatever_the_claims() -> None:
    """Who has no key learns nothing of how a payload is judged: nothing in it is read."""
    payloads = [b64encode(payload) for payload in (b"", b"{}", b"[", json.dumps(claims_to_json(claims_at())).encode())]
    codes = {code_of(f"{header(KEY.kid)}.{payload}.{b64encode(bytes(64))}") for payload in payloads}
    assert codes == {ErrorCode.TOKEN_BAD_SIGNATURE}
