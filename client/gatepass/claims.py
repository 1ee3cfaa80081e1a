"""What a token says: the claims as a value, and their JSON form. No I/O.

Names follow RFC 7519 (iss, sub, aud, iat, nbf, exp, jti), RFC 8693 (scope, act) and RFC 7800 (cnf).
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

from gatepass.errors import ErrorCode, TokenError

MAX_SECONDS: Final = 2**53
MAX_ACTORS: Final = 16

_Kind = TypeVar("_Kind", str, int, dict[str, Any])


class Confirmation(NamedTuple):
    """`cnf`: what must hold where the token is used, besides the token itself."""

    uid: int
    """The user id that must own the connection."""


class BootDeadline(NamedTuple):
    """`boot`: the end of the token's life on the clock that nobody can step."""

    id: str
    """The boot on which the token was issued."""
    deadline: int
    """Seconds of CLOCK_BOOTTIME of that boot."""


class Claims(NamedTuple):
    """Everything that a token says."""

    issuer: str
    subject: str
    audience: str
    issued_at: int
    """Also `nbf`. Seconds since the epoch."""
    expires_at: int
    token_id: str
    scope: tuple[str, ...]
    actors: tuple[str, ...]
    """Who acts for the subject, the present one first: `uid:1000`."""
    confirmation: Confirmation
    boot: BootDeadline

    @property
    def lifetime(self) -> int:
        """Life in seconds, from issue to expiry."""
        return self.expires_at - self.issued_at


def split_scope(scope: str) -> tuple[str, ...]:
    """Return the scope names in a space-separated list (RFC 6749 section 3.3), sorted, each once."""
    return tuple(sorted(set(scope.split())))


def join_scope(names: tuple[str, ...]) -> str:
    """Return scope names as one space-separated string."""
    return " ".join(names)


def claims_to_json(claims: Claims) -> dict[str, Any]:
    """Return the JWT claims set."""
    return {
        "iss": claims.issuer,
        "sub": claims.subject,
        "aud": claims.audience,
        "iat": claims.issued_at,
        "nbf": claims.issued_at,
        "exp": claims.expires_at,
        "jti": claims.token_id,
        "scope": join_scope(claims.scope),
        "act": _nest_actors(claims.actors),
        "cnf": {"uid": claims.confirmation.uid},
        "boot": {"id": claims.boot.id, "exp": claims.boot.deadline},
    }


def encode_payload(claims: Claims) -> bytes:
    """Return the claims set as compact JSON in UTF-8."""
    return json.dumps(claims_to_json(claims), separators=(",", ":"), ensure_ascii=False).encode()


def decode_payload(payload: bytes) -> Claims:
    """Return the claims in a JWT payload whose signature has been verified.

    Raise `TokenError` (TOKEN_MALFORMED) unless each claim is there with its exact type. An unknown claim is ignored
    as RFC 7519 demands, but an unknown member of `cnf` is a condition that this release cannot check: refused.
    """
    try:
        claims = json.loads(payload, object_pairs_hook=_object_without_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise _malformed("its claims are not JSON without duplicate names") from None
    if not isinstance(claims, dict):
        raise _malformed("its claims are not a JSON object")
    confirmation, boot = _member(claims, "cnf", dict), _member(claims, "boot", dict)
    unknown = confirmation.keys() - Confirmation._fields
    if unknown:
        raise _malformed("it is bound by a condition that this release does not know: update gatepass here")
    issued_at = _seconds(claims, "iat")
    if _seconds(claims, "nbf") != issued_at:
        raise _malformed("'nbf' differs from 'iat'")
    expires_at = _seconds(claims, "exp")
    if expires_at <= issued_at:
        raise _malformed("it ends before it begins")
    return Claims(
        issuer=_text(claims, "iss"),
        subject=_text(claims, "sub"),
        audience=_text(claims, "aud"),
        issued_at=issued_at,
        expires_at=expires_at,
        token_id=_text(claims, "jti"),
        scope=split_scope(_member(claims, "scope", str)),
        actors=_flatten_actors(_member(claims, "act", dict)),
        confirmation=Confirmation(uid=_uid(confirmation)),
        boot=BootDeadline(id=_text(boot, "id"), deadline=_seconds(boot, "exp")),
    )


def _nest_actors(actors: tuple[str, ...]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for actor in reversed(actors):
        nested = {"sub": actor, "act": nested} if nested else {"sub": actor}
    return nested


def _flatten_actors(act: dict[str, Any]) -> tuple[str, ...]:
    actors: list[str] = []
    level: Any = act
    while level is not None:
        if not isinstance(level, dict) or len(actors) == MAX_ACTORS:
            raise _malformed("'act' is not a chain of actors")
        actors.append(_text(level, "sub"))
        level = level.get("act")
    return tuple(actors)


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate name")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _member(claims: dict[str, Any], name: str, kind: type[_Kind]) -> _Kind:
    value = claims.get(name)
    if type(value) is not kind:
        raise _malformed(f"'{name}' is missing or of the wrong type")
    return value


def _text(claims: dict[str, Any], name: str) -> str:
    value = _member(claims, name, str)
    if not value or not value.isprintable():
        raise _malformed(f"'{name}' is empty or has control characters")
    return value


def _seconds(claims: dict[str, Any], name: str) -> int:
    value = _member(claims, name, int)
    if not 0 <= value <= MAX_SECONDS:
        raise _malformed(f"'{name}' is out of range")
    return value


def _uid(confirmation: dict[str, Any]) -> int:
    value = _member(confirmation, "uid", int)
    if not 0 <= value < 2**32 - 1:
        raise _malformed("'cnf.uid' is not a user id")
    return value


def _malformed(why: str) -> TokenError:
    return TokenError(ErrorCode.TOKEN_MALFORMED, f"the token is malformed: {why}")
