from __future__ import annotations

import pytest

from gatepass.errors import DeniedError, ErrorCode, TryLaterError
from gatepass.patience import FIRST_DELAY, LONGEST_DELAY, CutOffError, Patience


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


RESTARTING = [FileNotFoundError, ConnectionRefusedError, ConnectionResetError, BrokenPipeError, BlockingIOError]


@pytest.mark.parametrize("kind", RESTARTING)
def test_what_a_restart_looks_like_is_tried_again_until_the_deadline(kind: type[OSError]) -> None:
    clock, error = Clock(), kind()
    patience = Patience(5.0, clock)
    attempts = [0]
    with pytest.raises(kind):
        _try_for_ever(patience, error, clock, attempts)
    assert 10 < attempts[0] < 40
    assert 1004.0 < clock.now < 1005.0


def _try_for_ever(patience: Patience, error: OSError, clock: Clock, attempts: list[int]) -> None:
    while True:
        clock.now += patience.delay_after(error)
        attempts[0] += 1


def test_delays_grow_and_differ() -> None:
    patience = Patience(1e9)
    delays = [patience.delay_after(FileNotFoundError()) for _ in range(40)]
    assert FIRST_DELAY / 2 <= delays[0] <= FIRST_DELAY
    assert all(LONGEST_DELAY / 2 <= delay <= LONGEST_DELAY for delay in delays[10:])
    assert len(set(delays[10:])) > 5


def test_a_reply_that_was_cut_off_is_asked_for_once_more_only() -> None:
    patience = Patience(5.0)
    patience.delay_after(CutOffError())
    with pytest.raises(CutOffError):
        patience.delay_after(CutOffError())


def test_a_broker_that_names_a_time_is_not_asked_earlier() -> None:
    unavailable = TryLaterError(ErrorCode.UNAVAILABLE, "starting", retry_after=3)
    assert Patience(5.0).delay_after(unavailable) == 3
    with pytest.raises(TryLaterError):
        Patience(2.0).delay_after(unavailable)


def test_a_broker_that_wants_another_connection_is_asked_again_soon() -> None:
    error = TryLaterError(ErrorCode.CONNECT_AGAIN, "too early", retry_after=0)
    assert FIRST_DELAY / 2 <= Patience(5.0).delay_after(error) <= FIRST_DELAY


@pytest.mark.parametrize(
    "error",
    [
        DeniedError(ErrorCode.DENIED, "no"),
        DeniedError(ErrorCode.LOCKED, "no"),
        TryLaterError(ErrorCode.RATE_LIMITED, "slowly", retry_after=1),
        PermissionError(),
        TimeoutError(),
        OSError(28, "No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_everything_else_is_told_at_once(error: Exception) -> None:
    with pytest.raises(type(error)):
        Patience(5.0).delay_after(error)


def test_no_time_left_is_a_timeout() -> None:
    clock = Clock()
    patience = Patience(5.0, clock)
    clock.now += 4
    assert patience.remaining() == 1
    clock.now += 1
    with pytest.raises(TimeoutError):
        patience.remaining()


def test_a_wait_that_took_too_long_leaves_the_reason_that_there_was() -> None:
    clock = Clock()
    patience = Patience(5.0, clock)
    assert patience.for_attempt() == 5
    error = FileNotFoundError()
    patience.delay_after(error)
    assert patience.for_attempt() == 5
    clock.now += 6
    with pytest.raises(FileNotFoundError) as caught:
        patience.for_attempt()
    assert caught.value is error
