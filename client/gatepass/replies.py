"""What the broker answers to `whoami`, `status` and `verify`, as values. No I/O.

The result of `issue` is in `gatepass.messages`. A member that a newer broker adds is ignored; one that is missing or of
another type is a `ProtocolError`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from gatepass.errors import ProtocolError
from gatepass.frames import Message
from gatepass.messages import field

_Item = TypeVar("_Item")


class GrantedTerms(NamedTuple):
    """What the broker would put into a token of this caller."""

    identity: str
    """The loopback user: the token's subject."""
    audiences: tuple[str, ...]
    """The first is the default."""
    scope: str
    """Space-separated."""
    max_ttl: int
    """Longest life of a token in seconds."""


class Whoami(NamedTuple):
    """Whom the broker sees. What the kernel does not tell is None."""

    uid: int | None
    gid: int | None
    groups: tuple[int, ...]
    """Supplementary group ids."""
    pid: int | None
    issuer: str
    grant: GrantedTerms | None
    """None where no rule matches: every request for a token will be denied."""


class KeyStatus(NamedTuple):
    """A key that verifiers trust."""

    kid: str
    signs_until: int
    """Seconds since the epoch."""
    published_until: int | None
    """None while the key signs. Seconds since the epoch."""


class Status(NamedTuple):
    """How the broker is."""

    version: str
    issuer: str
    state: str
    """`running`."""
    started: int
    """Seconds since the epoch."""
    uptime: int
    """Seconds."""
    keys: tuple[KeyStatus, ...]
    issued: int
    """Tokens issued, as far back as the journal goes."""
    refused: int
    connections: int
    configured: int
    """When the configuration in force was loaded. Seconds since the epoch."""


class VerifiedToken(NamedTuple):
    """What a good token says."""

    subject: str
    audience: str
    scope: str
    expires_at: int
    """Seconds since the epoch."""
    claims: dict[str, Any]
    """The whole claims set (RFC 7519 section 4)."""


def whoami_reply(result: Message) -> Whoami:
    """Return the result of a `whoami` request. Raise `ProtocolError`."""
    caller = field(result, "caller", dict)
    return Whoami(
        uid=_optional(caller, "uid"),
        gid=_optional(caller, "gid"),
        groups=_each(caller, "groups", int),
        pid=_optional(caller, "pid"),
        issuer=field(result, "issuer", str),
        grant=None if result.get("grant") is None else _grant(field(result, "grant", dict)),
    )


def status_reply(result: Message) -> Status:
    """Return the result of a `status` request. Raise `ProtocolError`."""
    return Status(
        version=field(result, "version", str),
        issuer=field(result, "issuer", str),
        state=field(result, "state", str),
        started=field(result, "started", int),
        uptime=field(result, "uptime", int),
        keys=tuple(_key(key) for key in _each(result, "keys", dict)),
        issued=field(result, "issued", int),
        refused=field(result, "refused", int),
        connections=field(result, "connections", int),
        configured=field(result, "configured", int),
    )


def verified_token(result: Message) -> VerifiedToken:
    """Return the result of a `verify` request. Raise `ProtocolError`."""
    claims = field(result, "claims", dict)
    return VerifiedToken(
        subject=field(claims, "sub", str),
        audience=field(claims, "aud", str),
        scope=field(claims, "scope", str),
        expires_at=field(claims, "exp", int),
        claims=claims,
    )


def _grant(grant: Message) -> GrantedTerms:
    return GrantedTerms(
        identity=field(grant, "identity", str),
        audiences=_each(grant, "audiences", str),
        scope=field(grant, "scope", str),
        max_ttl=field(grant, "max_ttl", int),
    )


def _key(key: Message) -> KeyStatus:
    return KeyStatus(field(key, "kid", str), field(key, "signs_until", int), _optional(key, "published_until"))


def _optional(message: Message, name: str) -> int | None:
    return None if message.get(name) is None else field(message, name, int)


def _each(message: Message, name: str, kind: type[_Item]) -> tuple[_Item, ...]:
    items = field(message, name, list)
    if not all(isinstance(item, kind) for item in items):
        raise ProtocolError(f"'{name}' in the reply holds something else than {kind.__name__}")
    return tuple(items)
