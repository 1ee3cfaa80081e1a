"""What the broker answers to administrators' requests, as values: sessions, what they left behind, what was cut off.

No I/O. A member that a newer broker adds is ignored; one that is missing or of another type is a `ProtocolError`.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from gatepass.frames import Message
from gatepass.messages import field
from gatepass.replies import each, optional
from gatepass.sessions import LeftBehind, Session, record_from_wire

_Record = TypeVar("_Record", Session, LeftBehind)


class Gateway(NamedTuple):
    """A gateway that is connected to the broker."""

    name: str
    """What it calls itself; several may have the same name."""
    connected_since: int
    """Seconds since the epoch."""
    seq: int
    """The last change of the broker's that it has carried out."""
    current: bool
    """Whether that is the last one that there was."""


class SessionAt(NamedTuple):
    """An open session, and the gateway that has it."""

    gateway: str
    session: Session


class SessionList(NamedTuple):
    """The sessions at the connected gateways."""

    gateways: tuple[Gateway, ...]
    sessions: tuple[SessionAt, ...]
    more: int
    """How many more there are than one reply holds."""


class LeftBehindList(NamedTuple):
    """What sessions have left behind."""

    entries: tuple[LeftBehind, ...]
    """The newest first."""
    more: int
    """How many more there are than one reply holds."""


class Enforced(NamedTuple):
    """How far a revocation, a lock or its end has got."""

    seq: int
    """The number of the change."""
    gateways: int
    """Gateways that were connected."""
    acted: int
    """Those that have carried it out."""
    waiting: tuple[str, ...]
    """The names of the others."""
    ended: int
    """Sessions that it ended."""
    recorded: bool = True
    """False: it is in force, and forgotten with the broker's next start unless its journal can be written before."""


def sessions_reply(result: Message) -> SessionList:
    """Return the result of a `sessions` request. Raise `ProtocolError`."""
    return SessionList(
        gateways=tuple(_gateway(entry) for entry in each(result, "gateways", dict)),
        sessions=tuple(
            SessionAt(field(entry, "gateway", str), _record(Session, entry)) for entry in each(result, "sessions", dict)
        ),
        more=optional(result, "more", int) or 0,
    )


def left_behind_reply(result: Message) -> LeftBehindList:
    """Return the result of a `left_behind` request. Raise `ProtocolError`."""
    return LeftBehindList(
        entries=tuple(_record(LeftBehind, entry) for entry in each(result, "left_behind", dict)),
        more=optional(result, "more", int) or 0,
    )


def enforced_reply(result: Message) -> Enforced:
    """Return the result of a `revoke`, `lock` or `unlock` request. Raise `ProtocolError`."""
    return Enforced(
        seq=field(result, "seq", int),
        gateways=field(result, "gateways", int),
        acted=field(result, "acted", int),
        waiting=each(result, "waiting", str),
        ended=field(result, "ended", int),
        recorded=optional(result, "recorded", bool) is not False,
    )


def _gateway(entry: Message) -> Gateway:
    return Gateway(
        name=field(entry, "name", str),
        connected_since=field(entry, "connected_since", int),
        seq=field(entry, "seq", int),
        current=field(entry, "current", bool),
    )


def _record(kind: type[_Record], entry: Message) -> _Record:
    return record_from_wire(kind, {name: value for name, value in entry.items() if name in kind._fields})
