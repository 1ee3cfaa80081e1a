"""A token that is always good: `TokenSource` keeps one, and renews it in time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Protocol

from gatepass.client import Client
from gatepass.errors import GatepassError
from gatepass.lifetime import Lifetime
from gatepass.messages import IssuedToken


class Issuer(Protocol):
    """What a source asks: a `Client`, or anything else that issues."""

    def issue(
        self,
        audience: str | None = None,
        scope: str | None = None,
        ttl: int | None = None,
        binding: str | None = None,
    ) -> IssuedToken:
        """Return a new token, or raise a `GatepassError`."""
        ...


class Briefly:
    """Issues by `client`, and closes its connection after each request.

    Minutes lie between two requests of a source, and an idle connection takes a place at the broker meanwhile.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def issue(
        self,
        audience: str | None = None,
        scope: str | None = None,
        ttl: int | None = None,
        binding: str | None = None,
    ) -> IssuedToken:
        """Return a new token; see `Client.issue`."""
        with self._client as client:
            return client.issue(audience, scope, ttl, binding)


class _Flight:
    """One request that is under way, and what became of it. Neither a token nor an error: its thread gave up."""

    def __init__(self) -> None:
        self.landed = threading.Event()
        self.token: str | None = None
        self.error: GatepassError | None = None


def boottime() -> float:
    """Return CLOCK_BOOTTIME in seconds (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class TokenSource:
    """Holds one token and renews it at 80 % of its life; for one audience and scope, shared by any number of threads.

    `client` is asked for tokens (default: a `Client()` of its own, connected for each request), the rest is as for
    `Client.issue`.

    One request is under way at a time, whoever asks. While the old token lives, only the thread that found it due
    waits for the new one. If renewing fails, the old token is returned for as long as it lives, and the next attempt is
    5 % of its life away; when there is none left, every thread that waits gets the error. `DeniedError` is raised at
    once, and the old token forgotten: a denial is a decision about this caller now.
    """

    def __init__(  # noqa: PLR0913 - what a token is asked for by
        self,
        client: Issuer | None = None,
        *,
        audience: str | None = None,
        scope: str | None = None,
        ttl: int | None = None,
        binding: str | None = None,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._client = Briefly(Client()) if client is None else client
        self._wanted = audience, scope, ttl, binding
        self._clock = clock
        self._flight: _Flight | None = None
        self._reset()

    def get(self) -> str:
        """Return a token that lives. Raise what `Client.issue` raises."""
        self._adopt()
        while True:
            with self._lock:
                now, flight = self._clock(), self._flight
                token = self._life.fresh(now) or (self._life.alive(now) if flight else None)
                if token is not None:
                    return token
                if flight is None:
                    own = self._flight = _Flight()
            if flight is None:
                return self._fly(own)
            flight.landed.wait()
            if flight.error is not None:
                raise flight.error
            if flight.token is not None:
                return flight.token

    def invalidate(self, token: str | None = None) -> None:
        """Forget `token`, because a gateway refused it; None forgets whichever is held.

        Name the token: then of a hundred threads whose requests were refused only the first causes a new one.
        """
        self._adopt()
        with self._lock:
            self._life.forget(token)

    def due_in(self) -> float:
        """Return the seconds until `get` will ask for a new token; 0 if it would now."""
        self._adopt()
        with self._lock:
            return self._life.due_in(self._clock())

    def __repr__(self) -> str:
        """What the tokens are for, never a token: a repr ends up in logs and tracebacks."""
        audience, scope, ttl, binding = self._wanted
        return f"TokenSource(audience={audience!r}, scope={scope!r}, ttl={ttl!r}, binding={binding!r})"

    def _fly(self, flight: _Flight) -> str:
        """Ask for a token on behalf of everybody who waits for `flight`."""
        asked_at = self._clock()
        try:
            issued = self._client.issue(*self._wanted)
        except GatepassError as error:
            with self._lock:
                flight.token = self._life.failed(error, self._clock())
            if flight.token is None:
                flight.error = error
                raise
        else:
            with self._lock:
                self._life.renewed(issued, asked_at)
            flight.token = issued.token
        finally:
            with self._lock:
                self._flight = None
            flight.landed.set()
        return flight.token

    def _adopt(self) -> None:
        """Start afresh in a forked child: the request under way is its parent's, and so is the token."""
        if self._pid != os.getpid():
            self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._life = Lifetime()
        self._flight = None
