"""What the broker has not been told yet of sessions: gathered, and handed out in reports that fit into a frame. No I/O.

What opens and closes between two reports is in none of them, so no number of short sessions makes the broker busy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeVar

from gatepass.frames import encode_frame
from gatepass.sessions import LeftBehind, Session, record_to_wire

MOST: Final = 100
"""Entries of a kind in one report."""
MOST_BYTES: Final = 28_672
"""Of a report's sessions, and again of what they left behind: both, and the rest, are less than a frame."""
MOST_KEPT: Final = 1_000
"""Of what was left behind while there is no broker to tell; the oldest is forgotten."""
BRIEF_SECONDS: Final = 1.0
"""An HTTP exchange that is over sooner is not reported."""


_Record = TypeVar("_Record", Session, LeftBehind)


class Batch(NamedTuple):
    """What goes into one report."""

    opened: tuple[Session, ...] = ()
    closed: tuple[str, ...] = ()
    left_behind: tuple[LeftBehind, ...] = ()


class Reports:
    """Gathers what happens. Times are seconds of one clock that only goes forward."""

    def __init__(self) -> None:
        self._opened: dict[str, tuple[Session, float]] = {}
        self._told: set[str] = set()
        self._closed: list[str] = []
        self._left_behind: list[LeftBehind] = []

    def start_anew(self, sessions: Iterable[Session], time: float) -> None:
        """Begin with a broker that has been told nothing: of all open sessions, and of what was not confirmed."""
        self._opened = {session.id: (session, _due(session, time)) for session in sessions}
        self._told.clear()
        self._closed.clear()

    def opened(self, session: Session, time: float) -> None:
        """Note that a session began."""
        self._opened[session.id] = (session, _due(session, time))

    def closed(self, session_id: str) -> None:
        """Note that a session ended; one that nobody was told of never was."""
        self._opened.pop(session_id, None)
        if session_id in self._told:
            self._told.remove(session_id)
            self._closed.append(session_id)

    def left_behind(self, entry: LeftBehind) -> bool:
        """Note what a session left behind. Return False if that made another entry be forgotten."""
        self._left_behind.append(entry)
        if len(self._left_behind) <= MOST_KEPT:
            return True
        del self._left_behind[0]
        return False

    @property
    def has_closed(self) -> bool:
        """Whether sessions have ended that the next report has no room for."""
        return bool(self._closed)

    def due_at(self) -> float:
        """Return when there is something to tell: infinity if there is nothing."""
        if self._closed or self._left_behind:
            return -math.inf
        return min((due for _, due in self._opened.values()), default=math.inf)

    def take(self, time: float) -> Batch:
        """Return what to tell next. Sessions in it count as told; what was left behind waits for `confirm`."""
        opened = _fitting([session for session, due in self._opened.values() if due <= time])
        for session in opened:
            del self._opened[session.id]
            self._told.add(session.id)
        closed, self._closed = tuple(self._closed[:MOST]), self._closed[MOST:]
        return Batch(opened, closed, _fitting(self._left_behind))

    def confirm(self, batch: Batch) -> None:
        """Forget what the broker has taken, or will never take."""
        done = {id(entry) for entry in batch.left_behind}
        self._left_behind = [entry for entry in self._left_behind if id(entry) not in done]


def _due(session: Session, time: float) -> float:
    return time + BRIEF_SECONDS if session.kind == "http" else time


def _fitting(records: list[_Record]) -> tuple[_Record, ...]:
    """Return the first of `records`, as many as go into a report."""
    size, fitting = 0, []
    for record in records[:MOST]:
        size += len(encode_frame(record_to_wire(record)))
        if size > MOST_BYTES:
            break
        fitting.append(record)
    return tuple(fitting)
