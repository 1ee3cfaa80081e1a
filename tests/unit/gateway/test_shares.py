"""Shares of connections: one user cannot take them all."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from gatepass.errors import ErrorCode
from gatepass_gateway.refused import RefusedError
from gatepass_gateway.shares import Shares
from gatepass_gateway.trusted_proxy import UNKNOWN_CLIENT, Client


def test_one_user_stops_at_its_share_and_another_goes_on() -> None:
    shares = Shares(per_uid=2, in_all=10)
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(shares.hold(Client(1000)))
        with pytest.raises(RefusedError) as caught:
            held.enter_context(shares.hold(Client(1000)))
        held.enter_context(shares.hold(Client(1001)))
        held.enter_context(shares.hold(UNKNOWN_CLIENT))

        assert caught.value.code is ErrorCode.TOO_MANY_CONNECTIONS
        assert caught.value.retry_after is not None
        assert shares.held == 4
    assert shares.held == 0


def test_all_together_stop_at_the_sum() -> None:
    shares = Shares(per_uid=2, in_all=3)
    with ExitStack() as held:
        for uid in (1, 2, 3):
            held.enter_context(shares.hold(Client(uid)))
        with pytest.raises(RefusedError):
            held.enter_context(shares.hold(Client(4)))


def test_connections_of_unknown_owners_share_one_share() -> None:
    shares = Shares(per_uid=1, in_all=3)
    with shares.hold(UNKNOWN_CLIENT), pytest.raises(RefusedError), shares.hold(UNKNOWN_CLIENT):
        pass


def test_a_share_released_early_is_free_at_once_and_only_once() -> None:
    shares = Shares(per_uid=1, in_all=1)
    with shares.hold(Client(1000)) as share:
        share.release()
        with shares.hold(Client(1000)):
            share.release()
            assert shares.held == 1


def test_a_share_comes_back_when_the_block_fails() -> None:
    shares = Shares(per_uid=1, in_all=1)
    with pytest.raises(ZeroDivisionError), shares.hold(Client(1000)):
        raise ZeroDivisionError
    assert shares.held == 0


def test_a_reverse_proxy_stands_for_many_and_leaves_its_user_the_share_of_a_user() -> None:
    reverse_proxy, same_user = Client(33, is_reverse_proxy=True), Client(33)
    shares = Shares(per_uid=1, in_all=5)
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(shares.hold(reverse_proxy, shared=True))
        held.enter_context(shares.hold(same_user))
        with pytest.raises(RefusedError):
            held.enter_context(shares.hold(same_user))
        held.enter_context(shares.hold(reverse_proxy, shared=True))
        with pytest.raises(RefusedError):
            held.enter_context(shares.hold(reverse_proxy, shared=True))
