"""All open connections, and which one has to go when there are too many. No I/O."""

from __future__ import annotations

from typing import Generic, NamedTuple, Protocol, TypeVar


class Entry(Protocol):
    """What the registry needs to know of a connection."""

    @property
    def uid(self) -> int | None:
        """Whose connection it is."""

    @property
    def following(self) -> bool:
        """Whether it follows keys: being quiet is its work, so it is not sent away for it."""

    @property
    def busy(self) -> bool:
        """Whether a request or a reply is on its way."""

    @property
    def active_at(self) -> float:
        """When it last did something, in seconds of any steady clock."""


EntryT = TypeVar("EntryT", bound=Entry)


class Admission(NamedTuple, Generic[EntryT]):
    """Whether a connection may come in, and which one is to be closed for it."""

    admitted: bool
    evicted: EntryT | None = None


class Registry(Generic[EntryT]):
    """Open connections by user."""

    def __init__(self, total: int, per_uid: int) -> None:
        self.total = total
        self.per_uid = per_uid
        self._by_uid: dict[int | None, dict[EntryT, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def everyone(self) -> list[EntryT]:
        """Return all connections."""
        return [entry for entries in self._by_uid.values() for entry in entries]

    def held_by(self, uid: int | None) -> int:
        """Return how many connections `uid` has."""
        return len(self._by_uid.get(uid, ()))

    def admit(self, entry: EntryT) -> Admission[EntryT]:
        """Take `entry` in, if need be in the place of another.

        A user at its own limit loses its oldest idle connection. When all places are taken, the user who holds most of
        them does: nobody can push out those who hold few.
        """
        crowd = self._crowd(entry.uid)
        evicted = None if crowd is None else _oldest(crowd)
        if crowd is not None and evicted is None:
            return Admission(False)
        if evicted is not None:
            self.remove(evicted)
        self._by_uid.setdefault(entry.uid, {})[entry] = None
        self._count += 1
        return Admission(True, evicted)

    def remove(self, entry: EntryT) -> None:
        """Forget `entry`, if it is there."""
        entries = self._by_uid.get(entry.uid, {})
        if entry in entries:
            del entries[entry]
            self._count -= 1
            if not entries:
                del self._by_uid[entry.uid]

    def _crowd(self, uid: int | None) -> dict[EntryT, None] | None:
        """Return the connections of which one must go before `uid` gets another, or None if there is room."""
        own = self._by_uid.get(uid, {})
        if len(own) >= self.per_uid:
            return own
        if self._count >= self.total:
            return max(self._by_uid.values(), key=len, default=own)
        return None


def _oldest(entries: dict[EntryT, None]) -> EntryT | None:
    """Return the entry to close: idle before busy, then the one that was active longest ago; never a follower."""
    candidates = (entry for entry in entries if not entry.following)
    return min(candidates, key=lambda entry: (entry.busy, entry.active_at), default=None)
