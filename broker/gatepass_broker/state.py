"""Everything about the broker that changes, in one place, and how each event changes it. No I/O, no clock."""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec import structs

from gatepass_broker.events import (
    AnyEvent,
    Checkpoint,
    Configured,
    Issued,
    KeyAdded,
    KeyRemoved,
    KeyRetired,
    PublishedKey,
    Refused,
    Started,
    Throttled,
)

REFUSALS_PER_MINUTE: Final = 30
"""Refusals of one uid that are recorded in a window. A person meets a handful, a broken loop thousands."""
WINDOW: Final = 60
"""Seconds."""
MAX_BUCKETS: Final = 1_024
"""Users whose refusals are counted at a time; beyond, the one who was counted longest ago is forgotten."""


class Bucket(NamedTuple):
    """Refusals of one uid in the window that began at `since`."""

    since: float
    refusals: int
    throttled_until: int = 0


class State:
    """The sum of all events so far."""

    def __init__(self) -> None:
        self.keys: dict[str, PublishedKey] = {}
        """By kid, in the order in which they were made."""
        self.generation = 0
        """Rises with every change of `keys`."""
        self.latest_end = 0
        """When the last of all tokens ends. Seconds since the epoch."""
        self.issued = 0
        self.refused = 0
        self.started = 0
        self.configured = 0
        """When this run, and this configuration, began. Seconds since the epoch."""
        self.refusals: dict[int | None, Bucket] = {}

    def apply(self, event: AnyEvent) -> None:
        """Let `event` have happened."""
        match event:
            case Issued(exp=end):
                self.issued += 1
                self.latest_end = max(self.latest_end, end)
            case Refused(uid=uid, time=time):
                self.refused += 1
                self._count_refusal(uid, time)
            case Throttled(uid=uid, until=until, time=time):
                self.refusals[uid] = Bucket(time, 0, until)
            case KeyAdded() | KeyRetired() | KeyRemoved():
                self._change_keys(event)
            case Started(time=time):
                self.started = int(time)
            case Configured(time=time):
                self.configured = int(time)
            case Checkpoint():
                self._restore(event)

    def checkpoint(self, time: float, kid: str) -> Checkpoint:
        """Return the event that restores this state; `kid` names the key that will sign it."""
        return Checkpoint(
            time=time,
            kid=kid,
            keys=tuple(self.keys.values()),
            generation=self.generation,
            issued=self.issued,
            refused=self.refused,
            latest_end=self.latest_end,
        )

    def throttled_for(self, uid: int | None, time: float) -> int:
        """Return for how many more seconds refusals of `uid` go unrecorded; 0 if they are recorded."""
        bucket = self.refusals.get(uid)
        # More than a window ahead means that the wall clock was set back since.
        if bucket is None or not time < bucket.throttled_until <= time + WINDOW + 1:
            return 0
        return max(1, bucket.throttled_until - int(time))

    def refusals_in_window(self, uid: int | None, time: float) -> int:
        """Return how often `uid` was refused in the window that `time` falls into."""
        bucket = self.refusals.get(uid)
        return bucket.refusals if bucket is not None and 0 <= time - bucket.since < WINDOW else 0

    def _count_refusal(self, uid: int | None, time: float) -> None:
        count = self.refusals_in_window(uid, time)
        if count:
            self.refusals[uid] = self.refusals[uid]._replace(refusals=count + 1)
            return
        self.refusals.pop(uid, None)
        if len(self.refusals) >= MAX_BUCKETS:
            del self.refusals[next(iter(self.refusals))]
        self.refusals[uid] = Bucket(time, 1)

    def _change_keys(self, event: KeyAdded | KeyRetired | KeyRemoved) -> None:
        self.generation += 1
        match event:
            case KeyAdded():
                self.keys[event.kid] = PublishedKey(event.kid, event.x, event.time, event.signs_until)
            case KeyRetired():
                if key := self.keys.get(event.kid):
                    self.keys[event.kid] = structs.replace(key, published_until=event.published_until)
            case KeyRemoved():
                self.keys.pop(event.kid, None)

    def _restore(self, event: Checkpoint) -> None:
        self.keys = {key.kid: key for key in event.keys}
        self.generation, self.issued, self.refused = event.generation, event.issued, event.refused
        self.latest_end = event.latest_end
