"""The configuration file's form, table by table: what may stand where, before anything is looked up."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

MAX_TTL = 86_400
"""Seconds. A day: what lives longer is not short-lived, and revoking it takes as long to forget."""

Seconds = Annotated[int, Meta(ge=1, le=MAX_TTL)]
KeySeconds = Annotated[int, Meta(ge=120, le=90 * 86_400)]
"""At least twice the overlap of two keys."""
Count = Annotated[int, Meta(ge=1, le=100_000)]
Id = Annotated[int, Meta(ge=0, le=2**32 - 2)]
"""A uid or gid; 2**32 - 1 means 'none' to the kernel."""
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Path = Annotated[str, Meta(min_length=1, max_length=4_096)]
ReconnectSeconds = Annotated[int, Meta(ge=0, le=7 * 86_400)]
BindingName = Literal["uid", "unit", "process"]
PidNamespace = Literal["host", "nested"]
OperationGroup = Literal["request", "follow", "admin"]


class _Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table in which an unknown key is an error: a misspelt limit must not be no limit."""


class BrokerTable(_Table, frozen=True):
    """`[broker]`."""

    loopback_user: Name
    """The identity of callers whose rule names none. It goes into a header: printable ASCII, at most one `@`."""
    id: Name | None = None
    """The broker's name in its tokens, whose issuer is `gatepass:ID`. Default: the machine's host name."""
    state_dir: str = "/var/lib/gatepass"
    """Where the journal is. It must belong to the broker's user or root, and nobody else may write to it."""
    jwks_file: str | None = None
    """Where to write the public keys (RFC 7517), for verifiers that do not follow the socket. Replaced as a whole."""
    default_ttl: Seconds = 300
    """Life of a token in seconds where the request names none; at most `max_ttl`."""
    max_ttl: Seconds = 3_600
    """Longest life in seconds that a rule may grant."""
    key_lifetime: KeySeconds = 86_400
    """Seconds for which a key signs. The next one is published a minute before it takes over."""


class LimitsTable(_Table, frozen=True):
    """`[limits]`."""

    connections: Count = 512
    """Open connections in all. At the limit the user who has most of them loses an idle one."""
    connections_per_uid: Count = 64
    """Open connections of one user. At the limit it loses the one that has been idle longest."""
    frame_seconds: Annotated[float, Meta(gt=0, le=3_600)] = 5
    """For a frame that has begun to be complete, and for a client to read what was answered."""
    idle_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 60
    """For a connection without a request. Followers of the keys are exempt."""
    pipelined: Count = 32
    """Requests of one connection that are answered before others have their turn. The user's connections share them."""


class JournalTable(_Table, frozen=True):
    """`[journal]`."""

    segment_bytes: Annotated[int, Meta(ge=4_096, le=2**30)] = 16_777_216
    """Size at which a segment ends and a new one begins, with a checkpoint."""
    keep_segments: Annotated[int, Meta(ge=2, le=100_000)] = 64
    """Segments that are kept. Older ones are removed: copy them before, if you must keep them."""


class SocketTable(_Table, frozen=True):
    """`[[socket]]`: where the broker listens. At least one."""

    path: Name
    """Absolute, at most 107 bytes, in a directory in which only the broker's user and root can make names."""
    mode: Annotated[str, Meta(pattern="^0?[0-7]{3}$")] = "0660"
    """Permissions, octal. Who can write to the socket can ask; the rules decide what they get."""
    owner: Name | None = None
    """The user that it belongs to. Default: the broker's own."""
    group: Name | None = None
    """The group that it belongs to. Default: the broker's own."""
    allow: tuple[OperationGroup, ...] = ("request",)
    """What may be asked here. `request`: issue, whoami, status, verify. `follow`: the public keys as they change, for
    gateways. `admin`: revoke, lock and unlock, see sessions, and have others' requests explained."""


class RuleTable(_Table, frozen=True):
    """`[[rule]]`: who gets what. The first rule that matches the caller counts, alone. No rule, no token.

    The keys from `uid` to `pid_namespace` say whom it is for. At least one must be there, and each that is there must
    match; where it is a list, one of its values is enough. What the kernel does not tell of a caller never matches.
    """

    scopes: tuple[str, ...]
    """What tokens may say, each scope by name: `operator.admin` does not include `operator.read`. With `*` it is a
    pattern, such as `operator.*`: a request may name what fits, and one that names no scope gets those of OpenClaw's
    operator scopes that fit. May be empty."""
    name: Name | None = None
    """Its name in the journal, unlike any other rule's. Default: `rule[0]`, `rule[1]` and so on, in a file of `conf.d`
    after the file's name, `agents.toml:rule[0]`."""
    uid: Id | tuple[Id, ...] | None = None
    """Matches a caller with one of these user ids."""
    user: Name | tuple[Name, ...] | None = None
    """Matches a caller who is one of these users. Names are looked up at start and reload."""
    gid: Id | tuple[Id, ...] | None = None
    """Matches a caller with one of these group ids, as its own or as a supplementary one."""
    group: Name | tuple[Name, ...] | None = None
    """Matches a member of one of these groups, as of when the calling process logged in."""
    unit: Name | tuple[Name, ...] | None = None
    """Matches a caller in one of these units of the system manager. Full names, such as `openclaw.service`; `*` stands
    for any characters, as in `openclaw@*.service`."""
    user_unit: Name | tuple[Name, ...] | None = None
    """Matches a caller in one of these units of its own user's manager, written like `unit`. A label and no boundary:
    users name their units as they like."""
    slice: Name | tuple[Name, ...] | None = None
    """Matches a caller whose unit lies in one of these slices of the system manager, at any depth."""
    user_slice: Name | tuple[Name, ...] | None = None
    """The same for the slices of its own user's manager: a label, too."""
    cgroup: Path | tuple[Path, ...] | None = None
    """Matches a caller in one of these cgroups (v2) or beneath. Paths from the root of the hierarchy, such as
    `/system.slice/openclaw.service`."""
    container: Name | tuple[Name, ...] | None = None
    """Matches a caller in one of these containers: an id of 64 hexadecimal digits, or at least 12 of its beginning."""
    pid_namespace: PidNamespace | tuple[PidNamespace, ...] | None = None
    """`host`: matches a caller in the broker's own pid namespace. `nested`: in one beneath it, as most
    containers are."""
    identity: Name | None = None
    """Whom the tokens make the caller. Default: `broker.loopback_user`."""
    audiences: tuple[str, ...] = ("openclaw",)
    """Whom tokens may be for. The first is the default of a request that names none."""
    max_ttl: Seconds | None = None
    """Longest life in seconds. Default, and at most: `broker.max_ttl`."""
    bind: BindingName = "uid"
    """What a token is bound to, so that it is good there only. `uid`: the user. `unit`: the unit that the caller runs
    in, too. `process`: the calling process, too, while it lives (Linux 6.9). A request may ask for more, never less."""
    reconnect: ReconnectSeconds = 0
    """For so many seconds from its issue a client that logged in with a token may log in with it again, though it has
    expired, from the same user and cgroup."""
    per_minute: Count | None = None
    """Tokens that one user may have by this rule in a minute. Default: any number."""


class File(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    broker: BrokerTable
    limits: LimitsTable = field(default_factory=LimitsTable)
    journal: JournalTable = field(default_factory=JournalTable)
    socket: tuple[SocketTable, ...] = ()
    rule: tuple[RuleTable, ...] = ()


class RulesFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file of `conf.d`: rules, and nothing else."""

    rule: tuple[RuleTable, ...] = ()
