"""How many connections without a login each local user may hold, so that none crowds out the others. Pure.

A gateway counts unauthenticated connections by address and stops at a number (OpenClaw: 32); everything that comes
through a proxy counts as one address. So the proxy gives each uid a small share and stays below that number itself.
A reverse proxy's connections are not those of other programs that run as its user.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gatepass.errors import ErrorCode
from gatepass_gateway.refused import RefusedError
from gatepass_gateway.trusted_proxy import Client

_Account = tuple[int | None, bool]


class Shares:
    """Counts what is held. A connection whose owner is unknown shares with all others of unknown owner."""

    def __init__(self, *, per_uid: int, in_all: int) -> None:
        self._per_uid = per_uid
        self._in_all = in_all
        self._held: Counter[_Account] = Counter()

    @property
    def held(self) -> int:
        """How many are held in all."""
        return self._held.total()

    @contextmanager
    def hold(self, client: Client, *, shared: bool = False) -> Iterator[Share]:
        """Hold one place for `client`, until it is released or the block ends. Raise `RefusedError` if none is free.

        `shared` is for a reverse proxy, which stands for many people.
        """
        account = client.account
        if self.held >= self._in_all or (self._held[account] >= self._per_uid and not shared):
            raise RefusedError(
                ErrorCode.TOO_MANY_CONNECTIONS,
                "too many connections are open, or wait for their login; try again in a few seconds",
                retry_after=3,
            )
        self._held[account] += 1
        share = Share(self._held, account)
        try:
            yield share
        finally:
            share.release()


class Share:
    """One place that is held."""

    def __init__(self, held: Counter[_Account], account: _Account) -> None:
        self._held = held
        self._account = account
        self._released = False

    def release(self) -> None:
        """Give the place back; a second time changes nothing."""
        if self._released:
            return
        self._released = True
        self._held[self._account] -= 1
        if not self._held[self._account]:
            del self._held[self._account]
