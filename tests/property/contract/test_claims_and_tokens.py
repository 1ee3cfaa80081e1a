from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatepass.claims import (
    MAX_ACTORS,
    MAX_SECONDS,
    BootDeadline,
    Claims,
    Confirmation,
    claims_to_json,
    decode_payload,
    encode_payload,
    split_scope,
)
from gatepass.errors import TokenError
from gatepass.tokens import b64decode, b64encode, check_token, jwk, key_table, public_key_of, thumbprint
from support.client import MOMENT, SigningKey, claims_at, expected_at

KEY = SigningKey()
KEYS = key_table([KEY.verification_key()])
GOOD = KEY.sign(claims_at())

names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30)
scopes = st.lists(st.text("abc.:*", min_size=1, max_size=8), max_size=5).map(lambda each: split_scope(" ".join(each)))
seconds = st.integers(0, MAX_SECONDS - 1)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def claims(draw: st.DrawFn) -> Claims:
    issued_at = draw(seconds)
    return Claims(
        issuer=draw(names),
        subject=draw(names),
        audience=draw(names),
        issued_at=issued_at,
        expires_at=draw(st.integers(issued_at + 1, MAX_SECONDS)),
        token_id=draw(names),
        scope=draw(scopes),
        actors=tuple(draw(st.lists(names, min_size=1, max_size=MAX_ACTORS))),
        confirmation=Confirmation(draw(st.integers(0, 2**32 - 2))),
        boot=BootDeadline(draw(names), draw(seconds)),
    )


@given(claims())
def test_claims_come_back_as_they_were(value: Claims) -> None:
    assert decode_payload(encode_payload(value)) == value


@given(
    st.binary(max_size=200) | st.text(max_size=100).map(str.encode) | json_values.map(lambda v: json.dumps(v).encode())
)
def test_any_payload_is_claims_or_a_token_error(payload: bytes) -> None:
    with contextlib.suppress(TokenError):
        decode_payload(payload)


@given(st.sampled_from(sorted(claims_to_json(claims_at()))), json_values)
def test_any_value_of_a_claim_is_read_or_a_token_error(name: str, value: Any) -> None:
    with contextlib.suppress(TokenError):
        decode_payload(json.dumps({**claims_to_json(claims_at()), name: value}).encode())


def test_a_chain_of_actors_has_an_end() -> None:
    act: dict[str, Any] = {"sub": "uid:1"}
    for _ in range(MAX_ACTORS):
        act = {"sub": "uid:1", "act": act}
    with pytest.raises(TokenError):
        decode_payload(json.dumps({**claims_to_json(claims_at()), "act": act}).encode())


@given(st.text(max_size=300) | st.text(".ey-_A", max_size=60))
def test_any_text_is_refused_by_a_token_error(token: str) -> None:
    with pytest.raises(TokenError):
        check_token(token, KEYS, expected_at())


@given(st.integers(0, len(GOOD) - 1), st.characters())
def test_a_token_with_any_character_changed_is_refused(index: int, character: str) -> None:
    changed = GOOD[:index] + character + GOOD[index + 1 :]
    if changed != GOOD:
        with pytest.raises(TokenError):
            check_token(changed, KEYS, expected_at())


@given(st.integers(-10_000, 10_000), st.integers(-10_000, 10_000))
def test_no_pair_of_clocks_accepts_a_token_after_its_life(wall: int, boot: int) -> None:
    moment = MOMENT._replace(time=MOMENT.time + wall, boottime=MOMENT.boottime + boot)
    try:
        check_token(GOOD, KEYS, expected_at(moment))
    except TokenError:
        return
    assert wall < 300
    assert -5 <= boot < 300


@given(st.binary(max_size=200))
def test_base64url_comes_back_as_it_was(data: bytes) -> None:
    assert b64decode(b64encode(data)) == data


@given(st.text(max_size=40))
def test_any_text_is_canonical_base64url_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert b64encode(b64decode(text)) == text


@given(st.binary(min_size=32, max_size=32))
def test_a_public_key_comes_back_from_its_jwk(public: bytes) -> None:
    assert public_key_of(jwk(public)) == public


@given(st.dictionaries(st.sampled_from(["kty", "crv", "x", "kid", "use", "alg", "d"]), st.text(max_size=8)))
def test_any_other_jwk_is_a_value_error(key: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="not"):
        public_key_of(key)


def test_the_thumbprint_is_that_of_rfc_8037() -> None:
    """RFC 8037 appendix A.3."""
    public = b64decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
    assert thumbprint(public) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
