"""Which tokens count here: the trusted keys, and the one function that checks a token against them.

Pure: keys, what is cut off, a moment and a presenter go in, claims or an error come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gatepass.claims import Claims
from gatepass.clock import Moment
from gatepass.daemon.ed25519 import signature_check
from gatepass.errors import ErrorCode, TokenError
from gatepass.revocations import NOTHING_CUT, Standing, locked_error
from gatepass.tokens import (
    Expected,
    Presenter,
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
    standing: Standing = NOTHING_CUT

    def verify(self, token: str, presenter: Presenter, moment: Moment) -> Claims:
        """Return the claims of `token`, shown at `moment` by `presenter`. Raise `TokenError` or `DeniedError` (LOCKED).

        Under lock nothing is looked at: every token is told the same. Whether one is revoked is told to its owner only.
        """
        if self.standing.locked:
            raise locked_error()
        claims = check_token(token, self.keys.table, Expected(self.keys.issuer, self.audience, moment))
        check_binding(claims, presenter)
        self.standing.check(claims)
        return claims

    def verify_again(self, claims: Claims, presenter: Presenter) -> Claims:
        """Return `claims`, of a token that ended since it logged in here, if they count otherwise. Raise alike."""
        if claims.audience != self.audience or self.keys.issuer not in (None, claims.issuer):
            raise TokenError(
                ErrorCode.TOKEN_WRONG_AUDIENCE,
                "the token logged in here for another audience, or came from another broker, than counts here now; ask "
                "the broker for a new one",
            )
        check_binding(claims, presenter)
        self.standing.check(claims)
        return claims


class Trust(NamedTuple):
    """What counts here at a moment, as the broker said last."""

    keys: KeySet = KeySet()
    standing: Standing = NOTHING_CUT


def _verification_key(public_key: bytes) -> VerificationKey:
    return VerificationKey(thumbprint(public_key), signature_check(public_key))
