"""Those who follow the broker, what they have carried out, and the sessions that they report. No I/O.

Nothing of this is on the record: a follower that comes back says anew what is open.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Final, NamedTuple

from gatepass.errors import DeniedError, ErrorCode, ProtocolError
from gatepass.frames import Message, encode_frame
from gatepass.messages import ReportRequest
from gatepass.sessions import LeftBehind, Session, record_from_wire, record_to_wire

MAX_SESSIONS: Final = 4_096
"""Open sessions of one follower."""
MAX_NAME: Final = 64
ANSWER_BYTES: Final = 48_000
"""Of records in one answer: a frame has 65,536."""


class Follower:
    """A gateway that is connected."""

    def __init__(self, name: str, since: int) -> None:
        self.name = name
        self.since = since
        """Seconds since the epoch."""
        self.seq = -1
        """The last change that it has carried out."""
        self.sessions: dict[str, Session] = {}


class Progress(NamedTuple):
    """A change that followers are to carry out."""

    seq: int
    followers: tuple[tuple[Follower, frozenset[str]], ...]
    """Those who were there when it was made, with the ids of the sessions that they had open."""


class Followers:
    """All that are connected, by whatever tells their connections apart."""

    def __init__(self) -> None:
        self._followers: dict[Hashable, Follower] = {}

    def __len__(self) -> int:
        return len(self._followers)

    @property
    def everyone(self) -> tuple[Follower, ...]:
        """All of them, in the order in which they came."""
        return tuple(self._followers.values())

    def add(self, connection: Hashable, name: str | None, time: float) -> None:
        """Take note that `connection` follows."""
        self._followers[connection] = Follower((name or "a gateway")[:MAX_NAME], int(time))

    def remove(self, connection: Hashable) -> None:
        """Forget a connection, if it followed."""
        self._followers.pop(connection, None)

    def read(self, connection: Hashable, report: ReportRequest) -> tuple[Follower, list[LeftBehind]]:
        """Take in what the follower on `connection` reports. Return who it is, and what sessions left behind there.

        Raise `DeniedError` if it does not follow, `ProtocolError` if it reports what no follower would.
        """
        follower = self._followers.get(connection)
        if follower is None:
            raise DeniedError(
                ErrorCode.INVALID_REQUEST, "only a connection that follows can report: send 'follow' first"
            )
        opened = [record_from_wire(Session, entry) for entry in report.opened]
        left_behind = [record_from_wire(LeftBehind, entry) for entry in report.left_behind]
        if len(follower.sessions) + len(opened) > MAX_SESSIONS:
            raise ProtocolError(f"a follower can report {MAX_SESSIONS} open sessions and no more")
        follower.sessions.update((session.id, session) for session in opened)
        for session_id in report.closed:
            follower.sessions.pop(session_id, None)
        follower.seq = max(follower.seq, report.seq)
        return follower, left_behind

    def progress(self, seq: int) -> Progress:
        """Return the change with number `seq`, to be carried out by whoever is here now."""
        return Progress(seq, tuple((each, frozenset(each.sessions)) for each in self.everyone))

    def is_awaited(self, progress: Progress) -> bool:
        """Whether somebody who is here has still to carry it out."""
        here = self.everyone
        return any(each in here and each.seq < progress.seq for each, _ in progress.followers)

    def outcome(self, progress: Progress) -> Message:
        """Return how far it is carried out. Who is gone has not said so, and learns it first when it is back."""
        here = self.everyone
        acted = [(each, before) for each, before in progress.followers if each in here and each.seq >= progress.seq]
        done = [each for each, _ in acted]
        return {
            "seq": progress.seq,
            "gateways": len(progress.followers),
            "acted": len(acted),
            "waiting": [each.name for each, _ in progress.followers if each not in done],
            "ended": sum(len(before - each.sessions.keys()) for each, before in acted),
        }


def sessions_to_wire(followers: Followers, seq: int) -> Message:
    """Return the answer to `sessions`; `seq` is that of the last change."""
    gateways = [
        {"name": each.name, "connected_since": each.since, "seq": each.seq, "current": each.seq >= seq}
        for each in followers.everyone
    ]
    sessions = [
        {**record_to_wire(session), "gateway": each.name}
        for each in followers.everyone
        for session in each.sessions.values()
    ]
    return {"gateways": gateways, **_as_many_as_fit("sessions", sessions)}


def left_behind_to_wire(records: Iterable[LeftBehind]) -> Message:
    """Return the answer to `left_behind`, the newest first."""
    return _as_many_as_fit("left_behind", [record_to_wire(record) for record in records][::-1])


def _as_many_as_fit(name: str, entries: list[Message]) -> Message:
    """Return the first entries, and how many `more` there are."""
    room, shown = ANSWER_BYTES, 0
    for entry in entries:
        room -= len(encode_frame(entry))
        if room < 0:
            break
        shown += 1
    return {name: entries[:shown], "more": len(entries) - shown}
