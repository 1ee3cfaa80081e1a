"""Everything about the broker that changes, in one place, and how each event changes it. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from msgspec import structs

from gatepass.revocations import Cut, Revocation, Standing
from gatepass.sessions import LeftBehind
from gatepass_broker.events import (
    AnyEvent,
    Checkpoint,
    Configured,
    Issued,
    KeyAdded,
    KeyRemoved,
    KeyRetired,
    LeftBehindBy,
    Locked,
    PublishedKey,
    Refused,
    Revoked,
    StandingRevocation,
    Started,
    Throttled,
    Unlocked,
)

REFUSALS_PER_MINUTE: Final = 30
"""Refusals of one uid that are recorded in a window. A person meets a handful, a broken loop thousands."""
WINDOW: Final = 60
"""Seconds."""
MAX_BUCKETS: Final = 1_024
"""Users whose refusals are counted at a time; beyond, the one who was counted longest ago is forgotten."""
MAX_REVOCATIONS: Final = 128
"""As many as followers can be told in one frame. One more revokes everything instead."""
MAX_LEFT_BEHIND: Final = 1_000
"""Beyond, the oldest is forgotten here; the journal has it."""


class Bucket(NamedTuple):
    """What was counted in the window that began at `since`."""

    since: float
    times: int
    throttled_until: int = 0


class State:
    """The sum of all events so far."""

    def __init__(self) -> None:
        self.keys: dict[str, PublishedKey] = {}
        """By kid, in the order in which they were made."""
        self.generation = 0
        """Rises with every change that followers are told of: keys, revocations, the lock."""
        self.latest_end = 0
        """When the last of all tokens ends. Seconds since the epoch."""
        self.boot_id = ""
        self.latest_issue = 0
        """The latest `iat` of all tokens."""
        self.latest_use = 0
        """When the last of all tokens can be used for the last time, in this boot. Seconds of CLOCK_BOOTTIME."""
        self.locked = False
        self.revocations: tuple[StandingRevocation, ...] = ()
        self.left_behind: tuple[LeftBehind, ...] = ()
        self.issued = 0
        self.refused = 0
        self.started = 0
        self.configured = 0
        """When this run, and this configuration, began. Seconds since the epoch."""
        self.refusals: dict[int | None, Bucket] = {}
        self.issues: dict[tuple[int, str], Bucket] = {}
        """By uid and rule."""

    @property
    def standing(self) -> Standing:
        """What is cut off."""
        return Standing(self.locked, tuple(entry.revocation for entry in self.revocations))

    def apply(self, event: AnyEvent) -> None:
        """Let `event` have happened."""
        match event:
            case Issued():
                self._count_issue(event)
            case Refused(uid=uid, time=time):
                self.refused += 1
                _count(self.refusals, uid, time)
            case Throttled():
                self._throttle(event)
            case KeyAdded() | KeyRetired() | KeyRemoved():
                self._change_keys(event)
            case Revoked() | Locked() | Unlocked():
                self._cut_off(event)
            case LeftBehindBy(record=record):
                self.left_behind = (*self.left_behind, record)[-MAX_LEFT_BEHIND:]
            case Started():
                self._start(event)
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
            boot_id=self.boot_id,
            latest_issue=self.latest_issue,
            latest_use=self.latest_use,
            locked=self.locked,
            revocations=self.revocations,
            left_behind=self.left_behind,
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
        bucket = _in_window(self.refusals.get(uid), time)
        return 0 if bucket is None else bucket.times

    def issues_in_window(self, uid: int, rule: str, time: float) -> Bucket | None:
        """Return how many tokens `uid` got by `rule` in the window that `time` falls into; None for none."""
        return _in_window(self.issues.get((uid, rule)), time)

    def issued_until(self, time: float) -> int:
        """Return what a revocation at `time` has to cover: all that was issued, also before the clock was set back."""
        return max(int(time), self.latest_issue)

    def _count_issue(self, event: Issued) -> None:
        self.issued += 1
        self.latest_end = max(self.latest_end, event.exp)
        self.latest_issue = max(self.latest_issue, event.iat)
        self.latest_use = max(self.latest_use, event.usable_until)
        _count(self.issues, (event.uid, event.rule), event.time)

    def _throttle(self, event: Throttled) -> None:
        if event.rule is None:
            self.refusals[event.uid] = Bucket(event.time, 0, event.until)
        elif event.uid is not None and (bucket := self.issues.get((event.uid, event.rule))):
            self.issues[event.uid, event.rule] = bucket._replace(throttled_until=event.until)

    def _cut_off(self, event: Revoked | Locked | Unlocked) -> None:
        self.generation += 1
        if isinstance(event, Revoked):
            self._revoke(event)
        else:
            self.locked = isinstance(event, Locked)

    def _revoke(self, event: Revoked) -> None:
        """Add a revocation. Those before it stay: a session outlives its token, and its gateway may be away.

        Of too many, those without tokens that live become one for everything before them, if need be all.
        """
        same = (event.by, event.value)
        kept = [entry for entry in self.revocations if (entry.revocation.by, entry.revocation.value) != same]
        if len(kept) >= MAX_REVOCATIONS:
            kept = _merged(kept, lambda entry: entry.needed_until <= event.boottime)
        kept.append(StandingRevocation(Revocation(*same, event.issued_until), event.needed_until))
        if len(kept) > MAX_REVOCATIONS or event.by is Cut.ALL:
            kept = _merged(kept, lambda _: True)
        self.revocations = tuple(kept)

    def _start(self, event: Started) -> None:
        self.started = int(event.time)
        if event.boot_id != self.boot_id:
            self.boot_id, self.latest_use = event.boot_id, 0
            self.revocations = ()

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
        self.boot_id, self.latest_issue, self.latest_use = event.boot_id, event.latest_issue, event.latest_use
        self.locked, self.revocations, self.left_behind = event.locked, event.revocations, event.left_behind


def _merged(
    entries: list[StandingRevocation], is_one: Callable[[StandingRevocation], bool]
) -> list[StandingRevocation]:
    """Return `entries` with one for everything in the place of those that `is_one` chooses."""
    chosen = [entry for entry in entries if is_one(entry)]
    if not chosen:
        return entries
    everything = Revocation(Cut.ALL, "", max(entry.revocation.issued_until for entry in chosen))
    merged = StandingRevocation(everything, max(entry.needed_until for entry in chosen))
    return [merged, *(entry for entry in entries if not is_one(entry))]


_Key = TypeVar("_Key")


def _in_window(bucket: Bucket | None, time: float) -> Bucket | None:
    return bucket if bucket is not None and 0 <= time - bucket.since < WINDOW else None


def _count(buckets: dict[_Key, Bucket], key: _Key, time: float) -> None:
    """Count one more of `key` at `time`. Of too many keys the one that was counted longest ago is forgotten."""
    bucket = _in_window(buckets.get(key), time)
    if bucket is not None and bucket.times:
        buckets[key] = bucket._replace(times=bucket.times + 1)
        return
    buckets.pop(key, None)
    if len(buckets) >= MAX_BUCKETS:
        del buckets[next(iter(buckets))]
    buckets[key] = Bucket(time, 1)
