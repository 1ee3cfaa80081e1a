"""What a token says: the claims as a value, and their JSON form. No I/O.

Names follow RFC 7519 (iss, sub, aud, iat, nbf, exp, jti), RFC 8693 (scope, act) and RFC 7800 (cnf).
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

from gatepass.errors import ErrorCode, TokenError

MAX_SECONDS: Final = 2**53
MAX_ACTORS: Final = 16
MAX_KERNEL_ID: Final = 2**64 - 1
UNIT_ACTOR: Final = "unit:"
"""Begins the actor that is a systemd unit; what follows is its name, as `gatepass_broker.caller.Unit` writes it."""

_Kind = TypeVar("_Kind", str, int, dict[str, Any])


class Process(NamedTuple):
    """A process, such that no other one can be taken for it until the next boot."""

    pid: int
    """As seen from the broker's pid namespace."""
    inode: int
    """Of its pidfd, in pidfs (Linux 6.9 and later): never used again, unlike a pid."""


class Confirmation(NamedTuple):
    """`cnf`: what must hold where the token is used, besides the token itself."""

    uid: int
    """The user id that must own the connection."""
    cgroup: int | None = None
    """The connection must come from this cgroup (v2) or from one beneath it: the inode of its directory, which the
    kernel gives to no other until the next boot. It is the cgroup of the unit that the caller ran in."""
    process: Process | None = None
    """This process must be alive."""


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
    reconnect: int = 0
    """For how many seconds from `issued_at` a client that logged in while the token lived may log in with it again."""

    @property
    def unit(self) -> str | None:
        """The unit that acts, if it is known."""
        units = (actor.removeprefix(UNIT_ACTOR) for actor in self.actors if actor.startswith(UNIT_ACTOR))
        return next(units, None)

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
    claims_set: dict[str, Any] = {
        "iss": claims.issuer,
        "sub": claims.subject,
        "aud": claims.audience,
        "iat": claims.issued_at,
        "nbf": claims.issued_at,
        "exp": claims.expires_at,
        "jti": claims.token_id,
        "scope": join_scope(claims.scope),
        "act": _nest_actors(claims.actors),
        "cnf": _confirmation_to_json(claims.confirmation),
        "boot": {"id": claims.boot.id, "exp": claims.boot.deadline},
    }
    if claims.reconnect:
        claims_set["reconnect"] = claims.reconnect
    return claims_set


def _confirmation_to_json(confirmation: Confirmation) -> dict[str, Any]:
    members: dict[str, Any] = {"uid": confirmation.uid}
    if confirmation.cgroup is not None:
        members["cgroup"] = confirmation.cgroup
    if confirmation.process is not None:
        members["process"] = confirmation.process._asdict()
    return members


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
    boot = _member(claims, "boot", dict)
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
        confirmation=_confirmation(_member(claims, "cnf", dict)),
        boot=BootDeadline(id=_text(boot, "id"), deadline=_seconds(boot, "exp")),
        reconnect=_seconds(claims, "reconnect") if "reconnect" in claims else 0,
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


def _confirmation(members: dict[str, Any]) -> Confirmation:
    if members.keys() - Confirmation._fields:
        raise _malformed("it is bound by a condition that this release does not know: update gatepass here")
    return Confirmation(
        uid=_kernel_id(members, "uid", 2**32 - 2),
        cgroup=_kernel_id(members, "cgroup", MAX_KERNEL_ID) if "cgroup" in members else None,
        process=_process(_member(members, "process", dict)) if "process" in members else None,
    )


def _process(members: dict[str, Any]) -> Process:
    if members.keys() != set(Process._fields):
        raise _malformed("'cnf.process' is not a pid and an inode")
    return Process(_kernel_id(members, "pid", 2**31 - 1), _kernel_id(members, "inode", MAX_KERNEL_ID))


def _kernel_id(members: dict[str, Any], name: str, maximum: int) -> int:
    value = _member(members, name, int)
    if not 0 <= value <= maximum:
        raise _malformed(f"'cnf' has a '{name}' that the kernel never gives")
    return value


def _malformed(why: str) -> TokenError:
    return TokenError(ErrorCode.TOKEN_MALFORMED, f"the token is malformed: {why}")
