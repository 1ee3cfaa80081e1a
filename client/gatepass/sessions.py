"""Sessions at gateways, and what they left behind, as values and as maps on the wire. No I/O.

A gateway owns its sessions and reports them to the broker that it follows; the broker shows them to administrators.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeVar

from gatepass.errors import ProtocolError
from gatepass.frames import Message

MAX_TEXT: Final = 256
"""Characters of any text in a session or in what it left behind."""


class Session(NamedTuple):
    """Something of a local caller that is open at a gateway."""

    id: str
    """Made by the gateway: 128 random bits, base64url."""
    kind: str
    """`websocket` or `http`."""
    login: str
    """How it logged in: `token`, `reconnect` (with the token of an earlier login), or `device`."""
    identity: str | None
    """The loopback user; None for a device's."""
    uid: int | None
    unit: str | None
    """Where its token was asked for, if that is known."""
    jti: str | None
    scope: str
    """Space-separated."""
    since: int
    """Seconds since the epoch."""
    client: str
    """What it calls itself, which nobody has checked; may be empty."""


class LeftBehind(NamedTuple):
    """Something that outlives the session which made it."""

    time: int
    """Seconds since the epoch."""
    kind: str
    """`device`, `setup code`, `node` or `cron job`."""
    name: str
    """Its id at the gateway behind."""
    removal: str
    """The command that removes it."""
    session: str
    """The session's id."""
    identity: str | None
    uid: int | None
    unit: str | None
    jti: str | None


_Record = TypeVar("_Record", bound=Session | LeftBehind)

_OPTIONAL: Final = {"identity": str, "unit": str, "jti": str, "uid": int}
_NUMBERS: Final = ("since", "time")


def record_to_wire(record: Session | LeftBehind) -> Message:
    """Return the map of `record`, without what is None."""
    return {name: value for name, value in record._asdict().items() if value is not None}


def record_from_wire(kind: type[_Record], value: object) -> _Record:
    """Return the record in a map. Raise `ProtocolError` for anything that is not exactly one."""
    if not isinstance(value, dict) or value.keys() - kind._fields:
        raise ProtocolError(f"this is not a {kind.__name__}")
    fields: dict[str, Any] = {}
    for name in kind._fields:
        entry = value.get(name)
        if name in _OPTIONAL and entry is None:
            fields[name] = None
            continue
        expected = _OPTIONAL.get(name, int if name in _NUMBERS else str)
        if type(entry) is not expected or (isinstance(entry, str) and not _is_short_text(entry)):
            raise ProtocolError(f"'{name}' is missing or of the wrong form")
        fields[name] = entry
    return kind(**fields)


def _is_short_text(text: str) -> bool:
    return len(text) <= MAX_TEXT and text.isprintable()
