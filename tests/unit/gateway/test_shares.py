"""Shares of connections: one user cannot take them all."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from gatepass.errors import ErrorCode
from gatepass_gateway.refused import RefusedError
from gatepass_gateway.shares import Shares


def test_one_user_stops_at_its_share_and_another_goes_on() -> None:
    shares = Shares(per_uid=2, in_all=10)
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(shares.hold(1000))
        with pytest.raises(RefusedError) as caught:
            held.enter_context(shares.hold(1000))
        held.enter_context(shares.hold(1001))
        held.enter_context(shares.hold(None))

        assert caught.value.code is ErrorCode.TOO_MANY_CONNECTIONS
        assert caught.value.retry_after is not None
        assert shares.held == 4
    assert shares.held == 0


def test_all_together_stop_at_the_sum() -> None:
    shares = Shares(per_uid=2, in_all=3)
    with ExitStack() as held:
        for uid in (1, 2, 3):
            held.enter_context(shares.hold(uid))
        with pytest.raises(RefusedError):
            held.enter_context(shares.hold(4))


def test_connections_of_unknown_owners_share_one_share() -> None:
    shares = Shares(per_uid=1, in_all=3)
    with shares.hold(None), pytest.raises(RefusedError), shares.hold(None):
        pass


def test_a_share_released_early_is_free_at_once_and_only_once() -> None:
    shares = Shares(per_uid=1, in_all=1)
    with shares.hold(1000) as share:
        share.release()
        with shares.hold(1000):
            share.release()
            assert shares.held == 1


def test_a_share_comes_back_when_the_block_fails() -> None:
    shares = Shares(per_uid=1, in_all=1)
    with pytest.raises(ZeroDivisionError), shares.hold(1000):
        raise ZeroDivisionError
    assert shares.held == 0
