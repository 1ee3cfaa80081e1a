"""Which tokens count here: the trusted keys, and the one function that checks a token against them.

Pure: keys, a moment and a uid go in, claims or `TokenError` come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gatepass.claims import Claims
from gatepass.clock import Moment
from gatepass.daemon.ed25519 import signature_check
from gatepass.tokens import (
    Expected,
    VerificationKey,
    check_binding,
    check_token,
    key_table,
    public_key_of,
    thumbprint,
)


class KeySet(NamedTuple):
    """The keys of one broker, ready for verifying. The empty set verifies nothing."""

    issuer: str | None = None
    """The only issuer whose tokens count; None where the source of the keys names none."""
    table: Mapping[str, VerificationKey] = {}
    """By the exact protected header that their tokens carry."""


def key_set(issuer: str | None, keys: Sequence[Mapping[str, Any]]) -> KeySet:
    """Return the key set for JSON Web Keys. Raise `ValueError` if one of them is not a gatepass key."""
    return KeySet(issuer, key_table([_verification_key(public_key_of(key)) for key in keys]))


class Verifier(NamedTuple):
    """Checks tokens for one audience."""

    audience: str
    keys: KeySet

    def verify(self, token: str, uid: int | None, moment: Moment) -> Claims:
        """Return the claims of `token`, shown at `moment` on a connection that `uid` owns. Raise `TokenError`."""
        claims = check_token(token, self.keys.table, Expected(self.keys.issuer, self.audience, moment))
        check_binding(claims, uid)
        return claims


def _verification_key(public_key: bytes) -> VerificationKey:
    return VerificationKey(thumbprint(public_key), signature_check(public_key))
