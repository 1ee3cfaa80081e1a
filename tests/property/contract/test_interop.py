"""Other people's libraries accept our tokens with the published keys, and theirs are never accepted here."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import warnings
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt as joserfc_jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, OKPKey

from gatepass.claims import claims_to_json
from gatepass.clock import now
from gatepass.errors import ErrorCode, TokenError
from gatepass.tokens import TYPE, b64encode, check_token, jwk, key_table
from support.client import SigningKey, claims_at, expected_at

KEY, RETIRED = SigningKey(), SigningKey()
JWKS: dict[str, Any] = {"keys": [jwk(RETIRED.public), jwk(KEY.public)]}
TABLE = key_table([KEY.verification_key()])


def our_token() -> str:
    return KEY.sign(claims_at(now()))


def verify_with_joserfc(token: str, keys: dict[str, Any]) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it prefers 'Ed25519' (RFC 9864), which PyJWT and jose do not all know yet
        key_set = KeySet.import_key_set(keys)  # type: ignore[arg-type] # its own type for a JWKS
        return dict(joserfc_jwt.decode(token, key_set, algorithms=["EdDSA"]).claims)


def test_pyjwt_accepts_our_token_with_the_published_keys() -> None:
    token = our_token()
    kid = jwt.get_unverified_header(token)["kid"]
    key = jwt.PyJWKSet.from_dict(JWKS)[kid]
    claims = jwt.decode(token, key, algorithms=["EdDSA"], audience="openclaw", issuer="gatepass:test")
    assert claims["sub"] == "derek@example.com"
    assert jwt.get_unverified_header(token) == {"alg": "EdDSA", "kid": KEY.kid, "typ": TYPE}


def test_joserfc_accepts_our_token_with_the_published_keys() -> None:
    assert verify_with_joserfc(our_token(), JWKS) == claims_to_json(claims_at(now())) | {
        "iat": pytest.approx(time.time(), abs=2),
        "nbf": pytest.approx(time.time(), abs=2),
        "exp": pytest.approx(time.time() + 300, abs=2),
        "boot": {"id": now().boot_id, "exp": pytest.approx(now().boottime + 300, abs=2)},
    }


def test_both_refuse_it_under_another_key() -> None:
    token, others = our_token(), {"keys": [{**jwk(RETIRED.public), "kid": KEY.kid}]}
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token, jwt.PyJWKSet.from_dict(others)[KEY.kid], algorithms=["EdDSA"], audience="openclaw")
    with pytest.raises(JoseError):
        verify_with_joserfc(token, others)


def refused(token: str) -> ErrorCode:
    with pytest.raises(TokenError) as caught:
        check_token(token, TABLE, expected_at(now()))
    return caught.value.code


def payload() -> dict[str, Any]:
    return claims_to_json(claims_at(now()))


def test_a_token_of_pyjwt_with_our_key_and_header_is_ours() -> None:
    """The one that must be accepted: so the refusals below are for the reason that they name."""
    token = jwt.encode(payload(), KEY.private, "EdDSA", {"kid": KEY.kid, "typ": TYPE}, sort_headers=True)
    assert check_token(token, TABLE, expected_at(now())).subject == "derek@example.com"


@pytest.mark.parametrize("headers", [{"kid": KEY.kid, "typ": TYPE}, {"kid": KEY.kid}, {"typ": TYPE}, {}], ids=",".join)
def test_another_key_of_pyjwt(headers: dict[str, Any]) -> None:
    token = jwt.encode(payload(), Ed25519PrivateKey.generate(), "EdDSA", headers, sort_headers=True)
    assert refused(token) in (ErrorCode.TOKEN_BAD_SIGNATURE, ErrorCode.TOKEN_UNKNOWN_KEY)


def test_no_algorithm_of_pyjwt() -> None:
    token = jwt.encode(payload(), None, "none", {"kid": KEY.kid, "typ": TYPE}, sort_headers=True)  # type: ignore[arg-type]
    assert refused(token) is ErrorCode.TOKEN_UNKNOWN_KEY


@pytest.mark.parametrize(
    "secret",
    [KEY.public, b64encode(KEY.public).encode(), json.dumps(jwk(KEY.public)).encode()],
    ids=["raw", "base64url", "jwk"],
)
def test_the_public_key_as_hmac_secret(secret: bytes) -> None:
    """Signed by hand as well: PyJWT refuses some of these secrets itself."""
    for alg in ("HS256", "EdDSA"):
        protected = b64encode(json.dumps({"alg": alg, "kid": KEY.kid, "typ": TYPE}, separators=(",", ":")).encode())
        signing_input = f"{protected}.{b64encode(json.dumps(payload()).encode())}"
        for digest in (hashlib.sha256, hashlib.sha512):
            signature = hmac.new(secret, signing_input.encode(), digest).digest()
            assert refused(f"{signing_input}.{b64encode(signature)}") in (
                ErrorCode.TOKEN_UNKNOWN_KEY,
                ErrorCode.TOKEN_BAD_SIGNATURE,
            )


@given(
    st.fixed_dictionaries({"kid": st.sampled_from([KEY.kid, RETIRED.kid, ""]), "typ": st.sampled_from([TYPE, "JWT"])})
)
@settings(max_examples=10, deadline=None)
def test_another_key_of_joserfc(headers: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        key = OKPKey.generate_key("Ed25519")
        token = joserfc_jwt.encode({"alg": "EdDSA", **headers}, payload(), key, algorithms=["EdDSA"])
    assert refused(token) in (ErrorCode.TOKEN_BAD_SIGNATURE, ErrorCode.TOKEN_UNKNOWN_KEY)
