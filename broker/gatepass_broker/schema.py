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
OperationGroup = Literal["request", "follow", "admin"]


class _Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table in which an unknown key is an error: a misspelt limit must not be no limit."""


class BrokerTable(_Table, frozen=True):
    """`[broker]`."""

    loopback_user: Name
    id: Name | None = None
    state_dir: str = "/var/lib/gatepass"
    jwks_file: str | None = None
    default_ttl: Seconds = 300
    max_ttl: Seconds = 3_600
    key_lifetime: KeySeconds = 86_400


class LimitsTable(_Table, frozen=True):
    """`[limits]`."""

    connections: Count = 512
    connections_per_uid: Count = 64
    frame_seconds: Annotated[float, Meta(gt=0, le=3_600)] = 5
    idle_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 60
    pipelined: Count = 32


class JournalTable(_Table, frozen=True):
    """`[journal]`."""

    segment_bytes: Annotated[int, Meta(ge=4_096, le=2**30)] = 16_777_216
    keep_segments: Annotated[int, Meta(ge=2, le=100_000)] = 64


class SocketTable(_Table, frozen=True):
    """`[[socket]]`."""

    path: Name
    mode: Annotated[str, Meta(pattern="^0?[0-7]{3}$")] = "0660"
    owner: Name | None = None
    group: Name | None = None
    allow: tuple[OperationGroup, ...] = ("request",)


class RuleTable(_Table, frozen=True):
    """`[[rule]]`."""

    scopes: tuple[str, ...]
    name: Name | None = None
    uid: Id | tuple[Id, ...] | None = None
    user: Name | tuple[Name, ...] | None = None
    gid: Id | tuple[Id, ...] | None = None
    group: Name | tuple[Name, ...] | None = None
    identity: Name | None = None
    audiences: tuple[str, ...] = ("openclaw",)
    max_ttl: Seconds | None = None


class File(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    broker: BrokerTable
    limits: LimitsTable = field(default_factory=LimitsTable)
    journal: JournalTable = field(default_factory=JournalTable)
    socket: tuple[SocketTable, ...] = ()
    rule: tuple[RuleTable, ...] = ()
