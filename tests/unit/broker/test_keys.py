"""Rotation: a key is known before it signs, and until the last token that it signed has ended."""

from __future__ import annotations

import os

from gatepass.daemon.systemd import Notifier
from gatepass_broker.events import KeyAdded, KeyRemoved, KeyRetired, PublishedKey
from gatepass_broker.keys import MAX_PUBLISHED, OVERLAP, KeyRing, SigningKey, retirements, verification_key
from gatepass_broker.state import State
from gatepass_broker.vault import DescriptorVault, SeedVault

START = 1_800_000_000.0
LIFETIME = 1_000
MAX_TTL = 300


class Ring:
    """A key ring with the state beside it, as the broker keeps them."""

    def __init__(self) -> None:
        self.state = State()
        self.ring = KeyRing(SigningKey(START, LIFETIME))
        self.state.apply(self.ring.current.added())

    def turn(self, seconds: float) -> list[type]:
        turn = self.ring.turn(self.state.keys, START + seconds, LIFETIME, MAX_TTL)
        for event in turn.events:
            self.state.apply(event)
        self.ring.take(turn)
        return [type(event) for event in turn.events]


def test_nothing_is_due_at_first() -> None:
    ring = Ring()

    assert ring.turn(LIFETIME - OVERLAP - 1) == []
    assert ring.ring.next_due(ring.state.keys.values()) == START + LIFETIME - OVERLAP


def test_the_next_key_is_published_before_it_signs() -> None:
    ring = Ring()
    first = ring.ring.current

    assert ring.turn(LIFETIME - OVERLAP) == [KeyAdded]
    assert ring.ring.current is first
    assert len(ring.state.keys) == 2
    assert ring.turn(LIFETIME - 1) == []
    assert ring.turn(LIFETIME) == [KeyRetired]
    assert ring.ring.current is not first
    assert ring.ring.current.kid in ring.state.keys


def test_a_retired_key_stays_until_its_last_token_has_ended() -> None:
    ring = Ring()
    first = ring.ring.current.kid
    ring.turn(LIFETIME - OVERLAP)
    ring.turn(LIFETIME)

    assert ring.turn(LIFETIME + MAX_TTL) == []
    assert first in ring.state.keys
    assert ring.turn(LIFETIME + MAX_TTL + 1) == [KeyRemoved]
    assert first not in ring.state.keys


def test_each_key_signs_for_its_whole_lifetime() -> None:
    ring = Ring()
    ring.turn(LIFETIME - OVERLAP)
    ring.turn(LIFETIME)

    assert ring.ring.current.signs_until == START + 2 * LIFETIME


def test_after_a_long_sleep_the_overlap_is_kept_all_the_same() -> None:
    """A laptop wakes long after the rotation was due: the new key is still published before it signs."""
    ring = Ring()
    first = ring.ring.current

    assert ring.turn(50 * LIFETIME) == [KeyAdded]
    assert ring.ring.next_due(ring.state.keys.values()) == START + 50 * LIFETIME + OVERLAP
    assert ring.turn(50 * LIFETIME + OVERLAP - 1) == []
    assert ring.ring.current is first
    assert ring.turn(50 * LIFETIME + OVERLAP) == [KeyRetired]


def test_nothing_changes_before_the_turn_is_taken() -> None:
    ring = Ring()
    first = ring.ring.current
    ring.ring.turn(ring.state.keys, START + LIFETIME, LIFETIME, MAX_TTL)

    assert (ring.ring.current, ring.ring.upcoming) == (first, None)


def test_keys_of_an_earlier_run_are_retired_at_start() -> None:
    state = State()
    state.apply(SigningKey(START, LIFETIME).added())

    (event,) = retirements(state.keys.values(), START + 10, MAX_TTL)
    state.apply(event)
    assert retirements(state.keys.values(), START + 11, MAX_TTL) == []
    assert event.published_until == START + 10 + MAX_TTL + 1


def test_a_restart_loop_does_not_outgrow_a_frame() -> None:
    ring = Ring()
    for _ in range(3 * MAX_PUBLISHED):
        ring.state.apply(SigningKey(START, LIFETIME).added())
    ring.state.apply(ring.ring.current.added())
    for event in retirements([k for k in ring.state.keys.values() if k.kid != ring.ring.current.kid], START, MAX_TTL):
        ring.state.apply(event)
    ring.turn(1)

    assert len(ring.state.keys) == MAX_PUBLISHED + 1
    assert ring.ring.current.kid in ring.state.keys


def test_a_signature_fits_its_key_only() -> None:
    one, other = SigningKey(START, LIFETIME), SigningKey(START, LIFETIME)
    state = State()
    state.apply(one.added())
    check = verification_key(state.keys[one.kid]).verify

    assert check(one.sign(b"data"), b"data")
    assert not check(one.sign(b"data"), b"Data")
    assert not check(other.sign(b"data"), b"data")


class TestVault:
    """The vault holds what signs and what will, at each moment, and nothing else."""

    class Told(Notifier):
        """Notes what the manager is told to keep."""

        def __init__(self) -> None:
            super().__init__("/nowhere")
            self.kept: list[str] = []

        def keep(self, name: str, descriptor: int) -> None:
            assert os.pread(descriptor, 64, 0)
            self.kept.append(name)

        def forget(self, name: str) -> None:
            self.kept.remove(name)

    def test_a_rotation_keeps_the_next_key_before_it_forgets_the_last(self) -> None:
        told, ring = self.Told(), Ring()
        vault = DescriptorVault([], told)
        first = ring.ring.current
        vault.hold(ring.ring.keys)
        assert told.kept == [f"key-{first.kid}"]

        ring.turn(LIFETIME - OVERLAP)
        upcoming = ring.ring.upcoming
        assert upcoming is not None
        vault.hold(ring.ring.keys)
        assert told.kept == [f"key-{first.kid}", f"key-{upcoming.kid}"]

        ring.turn(LIFETIME)
        vault.hold(ring.ring.keys)
        assert told.kept == [f"key-{upcoming.kid}"]

    def test_a_key_made_from_a_seed_is_recalled_by_that_seed_alone(self) -> None:
        vault, key = SeedVault(b"s" * 32), SeedVault(b"s" * 32).make(START + 0.123456, LIFETIME)
        added = key.added()
        published = PublishedKey(added.kid, added.x, added.time, added.signs_until)
        recalled = vault.recall(published)
        assert recalled is not None
        assert recalled.sign(b"x") == key.sign(b"x")
        assert SeedVault(b"t" * 32).recall(published) is None
        assert vault.make(START, LIFETIME).kid != key.kid
