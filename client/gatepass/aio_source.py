"""The anyio twin of `TokenSource`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import anyio

from gatepass.errors import GatepassError
from gatepass.lifetime import Lifetime
from gatepass.messages import IssuedToken
from gatepass.source import boottime


class AsyncIssuer(Protocol):
    """What a source asks: an `AsyncClient`, or anything else that issues."""

    async def issue(
        self,
        audience: str | None = None,
        scope: str | None = None,
        ttl: int | None = None,
        binding: str | None = None,
    ) -> IssuedToken:
        """Return a new token, or raise a `GatepassError`."""
        ...


class _Flight:
    """One request that is under way, and what became of it. Neither a token nor an error: its task was cancelled."""

    def __init__(self) -> None:
        self.landed = anyio.Event()
        self.token: str | None = None
        self.error: GatepassError | None = None


class AsyncTokenSource:
    """`gatepass.TokenSource` for the tasks of one event loop: the same rules, `get` is async.

    The request runs in the task that found it due. If that task is cancelled, one of those that wait takes it over, so
    nobody fails or hangs for another's sake, and no task outlives the one that started it.
    """

    def __init__(  # noqa: PLR0913 - what a token is asked for by
        self,
        client: AsyncIssuer,
        *,
        audience: str | None = None,
        scope: str | None = None,
        ttl: int | None = None,
        binding: str | None = None,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._client = client
        self._wanted = audience, scope, ttl, binding
        self._clock = clock
        self._life = Lifetime()
        self._flight: _Flight | None = None

    async def get(self) -> str:
        """Return a token that lives. Raise what `AsyncClient.issue` raises."""
        while True:
            now, flight = self._clock(), self._flight
            token = self._life.fresh(now) or (self._life.alive(now) if flight else None)
            if token is not None:
                return token
            if flight is None:
                return await self._fly()
            await flight.landed.wait()
            if flight.error is not None:
                raise flight.error
            if flight.token is not None:
                return flight.token

    def invalidate(self, token: str | None = None) -> None:
        """Forget `token`, because a gateway refused it; None forgets whichever is held."""
        self._life.forget(token)

    def __repr__(self) -> str:
        """What the tokens are for, never a token."""
        audience, scope, ttl, binding = self._wanted
        return f"AsyncTokenSource(audience={audience!r}, scope={scope!r}, ttl={ttl!r}, binding={binding!r})"

    async def _fly(self) -> str:
        """Ask for a token on behalf of everybody who waits."""
        flight = self._flight = _Flight()
        asked_at = self._clock()
        try:
            issued = await self._client.issue(*self._wanted)
        except GatepassError as error:
            flight.token = self._life.failed(error, self._clock())
            if flight.token is None:
                flight.error = error
                raise
        else:
            self._life.renewed(issued, asked_at)
            flight.token = issued.token
        finally:
            self._flight = None
            flight.landed.set()
        return flight.token
