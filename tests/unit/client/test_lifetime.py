from __future__ import annotations

from gatepass.errors import DeniedError, ErrorCode, TryLaterError, UnreachableError
from gatepass.lifetime import Lifetime
from gatepass.messages import IssuedToken

GONE = UnreachableError(ErrorCode.UNREACHABLE, "gone")


def held(token: str = "old", expires_in: int = 100, asked_at: float = 0.0) -> Lifetime:
    life = Lifetime()
    life.renewed(IssuedToken(token, expires_in, "s", "a", ""), asked_at)
    return life


def test_a_token_is_due_at_80_percent_of_its_life_from_before_it_was_asked_for() -> None:
    life = held(asked_at=1000.0)
    assert life.fresh(1079.9) == "old"
    assert life.fresh(1080.0) is None
    assert life.alive(1099.9) == "old"
    assert life.alive(1100.0) is None
    assert life.due_in(1000.0) == 80
    assert life.due_in(1090.0) == 0


def test_after_a_failure_the_old_token_goes_on_and_the_next_attempt_waits() -> None:
    life = held()
    assert life.failed(GONE, 80.0) == "old"
    assert life.fresh(84.9) == "old"
    assert life.fresh(85.0) is None
    assert life.alive(85.0) == "old"


def test_a_broker_that_names_a_time_is_left_alone_until_then() -> None:
    life = held()
    life.failed(TryLaterError(ErrorCode.RATE_LIMITED, "slowly", retry_after=12), 80.0)
    assert life.due_in(80.0) == 12


def test_an_attempt_that_is_spaced_past_the_end_does_not_lengthen_the_life() -> None:
    life = held()
    life.failed(TryLaterError(ErrorCode.RATE_LIMITED, "slowly", retry_after=60), 80.0)
    assert life.alive(100.0) is None
    assert life.fresh(100.0) is None


def test_a_denial_ends_the_old_token() -> None:
    life = held()
    assert life.failed(DeniedError(ErrorCode.DENIED, "no"), 80.0) is None
    assert life.alive(80.0) is None


def test_nothing_is_left_after_the_end() -> None:
    assert held().failed(GONE, 100.0) is None


def test_forgetting_names_the_token() -> None:
    life = held("new")
    life.forget("old")
    assert life.alive(1.0) == "new"
    life.forget("new")
    assert life.alive(1.0) is None
    life = held("new")
    life.forget(None)
    assert life.alive(1.0) is None
