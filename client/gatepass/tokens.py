"""The token itself: a compact JWS (RFC 7515) over the claims, with one algorithm and one exact header. No I/O.

Signing and verifying are passed in, because the base install has no cryptography. The strictness is here: a token
never chooses how it is checked. Its protected header must be, byte for byte, one of the headers that the verifier
made itself from the keys it trusts; until that is so, and the signature holds, nothing in the token is parsed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from gatepass.claims import Claims, Process, decode_payload, encode_payload
from gatepass.clock import Moment
from gatepass.errors import ErrorCode, TokenError

TYPE: Final = "gatepass+jwt"
MAX_TOKEN: Final = 4_096
"""Longest token in characters; an honest one has about 600."""

CLOCK_LEEWAY: Final = 5
"""Seconds by which a clock may run backwards between issue and use, as NTP does, without refusing a new token."""

_SIGNATURE_BYTES: Final = 64

VerifySignature = Callable[[bytes, bytes], bool]
"""Whether the first argument is the key's signature of the second."""


class VerificationKey(NamedTuple):
    """A key that may have signed a token."""

    kid: str
    verify: VerifySignature


class Expected(NamedTuple):
    """What a token must say to be meant for here and now."""

    issuer: str | None
    """None accepts the issuer of any key that is trusted: for a key set from a file that names no issuer."""
    audience: str
    moment: Moment


def thumbprint(public_key: bytes) -> str:
    """Return the key id of a raw Ed25519 public key: its RFC 7638 thumbprint, members as in RFC 8037."""
    canonical = f'{{"crv":"Ed25519","kty":"OKP","x":"{b64encode(public_key)}"}}'
    return b64encode(hashlib.sha256(canonical.encode("ascii")).digest())


def jwk(public_key: bytes) -> dict[str, str]:
    """Return a raw Ed25519 public key as a JSON Web Key (RFC 7517, RFC 8037)."""
    return {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": b64encode(public_key),
        "kid": thumbprint(public_key),
        "use": "sig",
        "alg": "EdDSA",
    }


def public_key_of(key: Mapping[str, Any]) -> bytes:
    """Return the raw public key in a JSON Web Key of ours. Raise `ValueError` for any other key."""
    x = key.get("x")
    raw = b64decode(x) if isinstance(x, str) else b""
    if dict(key) != jwk(raw) or len(raw) != 32:
        raise ValueError("not a gatepass Ed25519 key with its own thumbprint as kid")
    return raw


def header(kid: str) -> str:
    """Return the protected header for key `kid`, base64url-encoded: the only one that a token of that key has."""
    text = json.dumps({"alg": "EdDSA", "kid": kid, "typ": TYPE}, separators=(",", ":"))
    return b64encode(text.encode("ascii"))


def encode_token(claims: Claims, protected: str, sign: Callable[[bytes], bytes]) -> str:
    """Return the signed token. `protected` comes from `header`, `sign` returns 64 bytes of Ed25519."""
    signing_input = f"{protected}.{b64encode(encode_payload(claims))}"
    return f"{signing_input}.{b64encode(sign(signing_input.encode('ascii')))}"


def key_table(keys: list[VerificationKey]) -> dict[str, VerificationKey]:
    """Return the keys by the exact protected header that their tokens carry."""
    return {header(key.kid): key for key in keys}


def check_token(token: str, keys: Mapping[str, VerificationKey], expected: Expected) -> Claims:
    """Return the claims of `token` if it is genuine and meant for here and now. Raise `TokenError`.

    `keys` comes from `key_table`. What the token is bound to (`cnf`) is checked by `check_binding`, by whoever
    knows the connection.
    """
    claims = decode_payload(_verified_payload(token, keys))
    _check_destination(claims, expected)
    _check_life(claims, expected.moment)
    return claims


class Presenter(NamedTuple):
    """Who shows a token, as far as whoever checks it can tell. What is unknown meets no condition."""

    uid: int | None
    is_in_cgroup: Callable[[int], bool] = lambda _: False
    """Whether its connection was made in the cgroup with this id, or in one beneath it."""
    is_alive: Callable[[Process], bool] = lambda _: False
    """Whether this process has not ended."""


def check_binding(claims: Claims, presenter: Presenter) -> None:
    """Raise `TokenError` unless `presenter` may show the token (`cnf`). An unknown uid (None) never may."""
    uid, bound = presenter.uid, claims.confirmation
    if uid is None:
        raise TokenError(
            ErrorCode.TOKEN_WRONG_UID,
            "the user that owns this connection is unknown, so no token can be accepted on it",
        )
    if uid != bound.uid:
        raise TokenError(
            ErrorCode.TOKEN_WRONG_UID,
            "the token was issued to another user and cannot be passed on: ask the broker for one as this user",
        )
    if bound.cgroup is not None and not presenter.is_in_cgroup(bound.cgroup):
        raise TokenError(
            ErrorCode.TOKEN_WRONG_UNIT,
            "the token is bound to the systemd unit that asked for it, and this connection comes from another one, or "
            "that unit was started again: ask the broker for one where it is used",
        )
    if bound.process is not None and not presenter.is_alive(bound.process):
        raise TokenError(
            ErrorCode.TOKEN_PROCESS_ENDED,
            "the token is bound to the process that asked for it, which has ended: ask the broker for a new one",
        )


def _verified_payload(token: str, keys: Mapping[str, VerificationKey]) -> bytes:
    if len(token) > MAX_TOKEN:
        raise TokenError(ErrorCode.TOKEN_MALFORMED, f"the token is longer than {MAX_TOKEN} characters")
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii():
        raise TokenError(ErrorCode.TOKEN_MALFORMED, "the token is not three base64url parts joined by dots")
    protected, payload, signature = parts
    key = keys.get(protected)
    if key is None:
        raise TokenError(
            ErrorCode.TOKEN_UNKNOWN_KEY,
            "the token's header names no key that is trusted here: it was altered, another broker made it, "
            "or its key has been retired; ask the broker for a new one",
        )
    try:
        signed, raw_payload = b64decode(signature), b64decode(payload)
    except ValueError:
        raise TokenError(ErrorCode.TOKEN_MALFORMED, "the token is not canonical base64url") from None
    if len(signed) != _SIGNATURE_BYTES or not key.verify(signed, f"{protected}.{payload}".encode("ascii")):
        raise TokenError(ErrorCode.TOKEN_BAD_SIGNATURE, "the token's signature does not fit: it was altered")
    return raw_payload


def _check_destination(claims: Claims, expected: Expected) -> None:
    if expected.issuer is not None and claims.issuer != expected.issuer:
        raise TokenError(ErrorCode.TOKEN_WRONG_ISSUER, "the token comes from another broker than the one trusted here")
    if claims.audience != expected.audience:
        raise TokenError(
            ErrorCode.TOKEN_WRONG_AUDIENCE,
            f"the token is for another audience; ask the broker for one with audience '{expected.audience}'",
        )


def _check_life(claims: Claims, moment: Moment) -> None:
    """Both clocks must agree that the token lives: a stepped wall clock can shorten a life, never lengthen it."""
    if claims.boot.id != moment.boot_id:
        raise TokenError(
            ErrorCode.TOKEN_WRONG_BOOT,
            "the token was issued on another machine or before the last restart; ask the broker for a new one",
        )
    if moment.time >= claims.expires_at or moment.boottime >= claims.boot.deadline:
        raise TokenError(ErrorCode.TOKEN_EXPIRED, "the token has expired; ask the broker for a new one")
    if moment.boottime < claims.boot.deadline - claims.lifetime - CLOCK_LEEWAY:
        raise TokenError(ErrorCode.TOKEN_NOT_YET_VALID, "the token is not valid yet")


def b64encode(data: bytes) -> str:
    """Return `data` in base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*")


def b64decode(text: str) -> bytes:
    """Return what `text` encodes in canonical base64url without padding. Raise `ValueError` for any other text."""
    if not _BASE64URL.fullmatch(text):
        raise ValueError("not base64url")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise ValueError("not base64url") from error
    if b64encode(data) != text:
        raise ValueError("not canonical base64url")
    return data
