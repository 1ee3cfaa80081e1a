"""Who has to go when there are too many connections."""

from __future__ import annotations

from dataclasses import dataclass

from gatepass_broker.registry import Registry


@dataclass(eq=False)
class Fake:
    uid: int | None
    active_at: float = 0
    busy: bool = False
    following: bool = False


def fill(registry: Registry[Fake], *entries: Fake) -> None:
    for entry in entries:
        assert registry.admit(entry) == (True, None)


def test_within_the_limits_nobody_goes() -> None:
    registry: Registry[Fake] = Registry(total=3, per_uid=2)
    fill(registry, Fake(1), Fake(1), Fake(2))

    assert len(registry) == 3


def test_the_oldest_idle_one_of_the_same_user_goes_first() -> None:
    registry: Registry[Fake] = Registry(total=10, per_uid=3)
    old, busy, new = Fake(1, 2), Fake(1, 1, busy=True), Fake(1, 3)
    fill(registry, new, busy, old, Fake(2, 0))

    assert registry.admit(Fake(1, 4)) == (True, old)
    assert len(registry) == 4


def test_a_busy_one_goes_when_none_is_idle() -> None:
    registry: Registry[Fake] = Registry(total=10, per_uid=2)
    first = Fake(1, 1, busy=True)
    fill(registry, first, Fake(1, 2, busy=True))

    assert registry.admit(Fake(1, 3)) == (True, first)


def test_a_follower_is_never_sent_away() -> None:
    registry: Registry[Fake] = Registry(total=10, per_uid=1)
    fill(registry, Fake(1, following=True))

    assert registry.admit(Fake(1)) == (False, None)
    assert len(registry) == 1


def test_one_user_with_many_makes_room_for_another_with_none() -> None:
    registry: Registry[Fake] = Registry(total=4, per_uid=3)
    modest = Fake(2, 0)
    fill(registry, modest, Fake(1, 5), Fake(1, 6), Fake(1, 7))

    admitted, evicted = registry.admit(Fake(3, 8))
    assert admitted
    assert evicted is not None
    assert evicted.uid == 1


def test_those_without_a_known_user_share_one_quota() -> None:
    registry: Registry[Fake] = Registry(total=10, per_uid=1)
    first = Fake(None)
    fill(registry, first)

    assert registry.admit(Fake(None, 1)).evicted is first


def test_removing_twice_counts_once() -> None:
    registry: Registry[Fake] = Registry(total=10, per_uid=5)
    entry = Fake(1)
    fill(registry, entry, Fake(1))
    registry.remove(entry)
    registry.remove(entry)

    assert len(registry) == 1
    assert entry not in registry.everyone()
