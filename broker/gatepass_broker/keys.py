"""Signing keys: one signs, the next is published before it signs, the last ones until their tokens have ended.

Private halves are in this process's memory and in the vault, if there is one. Public halves are events like all else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gatepass.daemon.ed25519 import signature_check
from gatepass.tokens import VerificationKey, b64decode, b64encode, header, thumbprint
from gatepass_broker.events import KeyAdded, KeyRemoved, KeyRetired, PublishedKey

OVERLAP: Final = 60
"""Seconds for which a new key is published before it signs: time for followers and readers of the file to learn it."""

MAX_PUBLISHED: Final = 64
"""Keys published at a time. Each restart leaves one; a restart loop must not make the set outgrow a frame."""


class SigningKey:
    """A private key, by default a new one. It has no form in which it could be printed by mistake."""

    def __init__(self, made: float, lifetime: int, private: Ed25519PrivateKey | None = None) -> None:
        self._private = private or Ed25519PrivateKey.generate()
        public = self._private.public_key().public_bytes_raw()
        self.made = made
        self.kid = thumbprint(public)
        self.protected = header(self.kid)
        self.signs_until = int(made) + lifetime
        self._x = b64encode(public)

    def sign(self, data: bytes) -> bytes:
        """Return the 64 bytes of the Ed25519 signature of `data`."""
        return self._private.sign(data)

    def secret(self) -> bytes:
        """Return the private half, 32 bytes (RFC 8032): for the vault, and nobody else."""
        return self._private.private_bytes_raw()

    def added(self) -> KeyAdded:
        """Return the event that publishes this key."""
        return KeyAdded(time=self.made, kid=self.kid, x=self._x, signs_until=self.signs_until)


class Turn(NamedTuple):
    """The next step of rotation: events to record, and the keys that are held once they are."""

    events: tuple[KeyAdded | KeyRetired | KeyRemoved, ...]
    current: SigningKey
    upcoming: SigningKey | None


class KeyRing:
    """The private keys of one run of the broker. `make` makes the next one: see `Vault.make`."""

    def __init__(
        self,
        current: SigningKey,
        upcoming: SigningKey | None = None,
        make: Callable[[float, int], SigningKey] = SigningKey,
    ) -> None:
        self.current = current
        self.upcoming = upcoming
        self._make = make

    @property
    def keys(self) -> tuple[SigningKey, ...]:
        """The one that signs, and the one that will."""
        return (self.current,) if self.upcoming is None else (self.current, self.upcoming)

    def turn(self, published: Mapping[str, PublishedKey], now: float, lifetime: int, max_ttl: int) -> Turn:
        """Return what is due at `now`. Nothing changes before `take` is called, after the events are recorded."""
        current, upcoming = self.current, self.upcoming
        events: list[KeyAdded | KeyRetired | KeyRemoved] = []
        if upcoming is None and now >= current.signs_until - OVERLAP:
            upcoming = self._make(now, OVERLAP + lifetime)
            events.append(upcoming.added())
        elif upcoming is not None and now >= _signs_from(current, upcoming):
            events.append(KeyRetired(time=now, kid=current.kid, published_until=int(now) + max_ttl + 1))
            current, upcoming = upcoming, None
        return Turn((*events, *removals(published.values(), now)), current, upcoming)

    def take(self, turn: Turn) -> None:
        """Hold the keys of `turn`, whose events are on the record."""
        self.current, self.upcoming = turn.current, turn.upcoming

    def next_due(self, published: Iterable[PublishedKey]) -> float:
        """Return when `turn` will next have something to do. Seconds since the epoch."""
        ends = [float(key.published_until) for key in published if key.published_until is not None]
        if self.upcoming is None:
            return min([float(self.current.signs_until - OVERLAP), *ends])
        return min([_signs_from(self.current, self.upcoming), *ends])


def _signs_from(current: SigningKey, upcoming: SigningKey) -> float:
    """When `upcoming` takes over: not before it was known for a while, even where its turn came late (suspend)."""
    return max(float(current.signs_until), upcoming.made + OVERLAP)


def retirements(published: Iterable[PublishedKey], now: float, max_ttl: int) -> list[KeyRetired]:
    """Return the events for keys whose private halves are gone: they sign no more, and their tokens may live on."""
    return [
        KeyRetired(time=now, kid=key.kid, published_until=int(now) + max_ttl + 1)
        for key in published
        if key.published_until is None
    ]


def removals(published: Iterable[PublishedKey], now: float) -> list[KeyRemoved]:
    """Return the events for keys of which no token can be alive, and for the oldest beyond `MAX_PUBLISHED`."""
    retired = [key for key in published if key.published_until is not None]
    surplus = {key.kid for key in retired[: max(0, len(retired) - MAX_PUBLISHED)]}
    return [
        KeyRemoved(time=now, kid=key.kid)
        for key in retired
        if key.kid in surplus or (key.published_until is not None and key.published_until <= now)
    ]


def verification_key(key: PublishedKey) -> VerificationKey:
    """Return what checks the signatures of `key`."""
    return VerificationKey(key.kid, signature_check(b64decode(key.x)))
