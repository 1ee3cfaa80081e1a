"""What the broker answers to `whoami`, `status` and `verify`, as values. No I/O.

The result of `issue` is in `gatepass.messages`; those of `explain` and of administrators' requests are in
`gatepass.explanation` and `gatepass.oversight`. None of them is loaded for a token alone. A member that a newer broker
adds is ignored; one that is missing or of another type is a `ProtocolError`, but for those that an older broker does
not have yet.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from gatepass.errors import ProtocolError
from gatepass.frames import Message
from gatepass.messages import field

_Item = TypeVar("_Item")
_Kind = TypeVar("_Kind", bool, int, str, dict[str, Any])


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
    binding: str = "uid"
    """What a token is bound to at least, a `gatepass.messages.Binding`."""
    reconnect: int = 0
    """For how many seconds after its issue a client that logged in with a token may log in with it again."""


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
    unit: str | None = None
    """The systemd unit that this process runs in."""
    cgroup: str | None = None
    """Path of its cgroup (v2), from the root of the hierarchy."""


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
    locked: bool = False
    """Whether an administrator has locked it, so that nothing is issued or accepted."""
    gateways: int | None = None
    """Gateways that are connected to it; None from an older broker."""


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
        uid=optional(caller, "uid", int),
        gid=optional(caller, "gid", int),
        groups=each(caller, "groups", int),
        pid=optional(caller, "pid", int),
        issuer=field(result, "issuer", str),
        grant=None if result.get("grant") is None else _grant(field(result, "grant", dict)),
        unit=optional(caller, "unit", str),
        cgroup=optional(caller, "cgroup", str),
    )


def status_reply(result: Message) -> Status:
    """Return the result of a `status` request. Raise `ProtocolError`."""
    return Status(
        version=field(result, "version", str),
        issuer=field(result, "issuer", str),
        state=field(result, "state", str),
        started=field(result, "started", int),
        uptime=field(result, "uptime", int),
        keys=tuple(_key(key) for key in each(result, "keys", dict)),
        issued=field(result, "issued", int),
        refused=field(result, "refused", int),
        connections=field(result, "connections", int),
        configured=field(result, "configured", int),
        locked=optional(result, "locked", bool) or False,
        gateways=optional(result, "gateways", int),
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
        audiences=each(grant, "audiences", str),
        scope=field(grant, "scope", str),
        max_ttl=field(grant, "max_ttl", int),
        binding=optional(grant, "binding", str) or "uid",
        reconnect=optional(grant, "reconnect", int) or 0,
    )


def _key(key: Message) -> KeyStatus:
    return KeyStatus(field(key, "kid", str), field(key, "signs_until", int), optional(key, "published_until", int))


def optional(message: Message, name: str, kind: type[_Kind]) -> _Kind | None:
    """Return `message[name]`, which must be a `kind`, or None where it is nil or missing. Raise `ProtocolError`."""
    return None if message.get(name) is None else field(message, name, kind)


def each(message: Message, name: str, kind: type[_Item]) -> tuple[_Item, ...]:
    """Return the list `message[name]`, each item of which must be a `kind`. Raise `ProtocolError`."""
    items = field(message, name, list)
    if not all(isinstance(item, kind) for item in items):
        raise ProtocolError(f"'{name}' in the reply holds something else than {kind.__name__}")
    return tuple(items)
