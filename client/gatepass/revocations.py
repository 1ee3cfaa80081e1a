"""What has been cut off before its time: revocations, and the lock. Values; no I/O.

The broker decides them and its followers enforce them. A revocation says which tokens, of those that were issued up to
a moment, count no more; there is no list of tokens.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final, NamedTuple

from gatepass.claims import Claims
from gatepass.errors import DeniedError, ErrorCode, GatepassError, ProtocolError, TokenError


class Cut(StrEnum):
    """By what a revocation chooses tokens."""

    JTI = "jti"
    UID = "uid"
    UNIT = "unit"
    IDENTITY = "identity"
    ALL = "all"


class Revocation(NamedTuple):
    """Tokens that count no more."""

    by: Cut
    value: str
    """A `jti`, a uid in decimal, a unit's name, a loopback user; empty for all."""
    issued_until: int
    """Tokens whose `iat` is later are not meant. Seconds since the epoch."""

    def covers(self, claims: Claims) -> bool:
        """Whether these claims are a revoked token's."""
        return claims.issued_at <= self.issued_until and self.means(
            claims.token_id, claims.confirmation.uid, claims.unit, claims.subject
        )

    def means(self, jti: str | None, uid: int | None, unit: str | None, identity: str | None) -> bool:
        """Whether a token, or session, of these is chosen, whenever it began. A unit's name stands for those in it."""
        match self.by:
            case Cut.ALL:
                return True
            case Cut.JTI:
                return jti == self.value
            case Cut.UID:
                return str(uid) == self.value
            case Cut.UNIT:
                return unit is not None and (unit == self.value or unit.startswith(f"{self.value}/"))
            case Cut.IDENTITY:
                return identity == self.value


class Standing(NamedTuple):
    """What is cut off at a moment."""

    locked: bool = False
    revocations: tuple[Revocation, ...] = ()

    def check(self, claims: Claims) -> None:
        """Raise `DeniedError` (LOCKED) or `TokenError` (TOKEN_REVOKED) if a token with these claims counts no more."""
        if self.locked:
            raise locked_error()
        if any(revocation.covers(claims) for revocation in self.revocations):
            raise revoked_error()


NOTHING_CUT: Final = Standing()


def locked_error() -> DeniedError:
    """Return the refusal of everything under lock."""
    return DeniedError(
        ErrorCode.LOCKED, "an administrator has locked gatepass: nothing is issued or accepted until 'gatepass unlock'"
    )


def revoked_error() -> GatepassError:
    """Return the refusal of a token that was revoked."""
    return TokenError(
        ErrorCode.TOKEN_REVOKED, "the token was revoked by an administrator; ask the broker for a new one"
    )


def standing_to_wire(standing: Standing) -> dict[str, Any]:
    """Return the members of a followers' message that say what is cut off."""
    return {"locked": standing.locked, "revocations": [list(entry) for entry in standing.revocations]}


def standing_from_wire(result: dict[str, Any]) -> Standing:
    """Return what a followers' message says is cut off. Raise `ProtocolError` where that cannot be understood."""
    locked, entries = result.get("locked"), result.get("revocations")
    if not isinstance(locked, bool) or not isinstance(entries, list):
        raise ProtocolError("the broker does not say what is locked and revoked: update it")
    return Standing(locked, tuple(map(_revocation, entries)))


def _revocation(entry: object) -> Revocation:
    match entry:
        case [str() as by, str() as value, int() as issued_until] if not isinstance(issued_until, bool):
            try:
                return Revocation(Cut(by), value, issued_until)
            except ValueError:
                pass
    raise ProtocolError("the broker has a revocation that this release does not know: update gatepass here")
