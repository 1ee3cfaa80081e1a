"""How the proxy ends without cutting anybody off in the middle of a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio


class Stopping:
    """Knows what may be interrupted when the proxy is told to stop; the rest is given time."""

    def __init__(self) -> None:
        self._scopes: set[anyio.CancelScope] = set()
        self._begun = False

    @contextmanager
    def interruptible(self, seconds: float) -> Iterator[anyio.CancelScope]:
        """Run the block for at most `seconds`, and until the proxy stops. `cancelled_caught` says that it was cut."""
        with anyio.move_on_after(seconds) as scope:
            if self._begun:
                scope.cancel()
            self._scopes.add(scope)
            try:
                yield scope
            finally:
                self._scopes.discard(scope)

    def begin(self) -> None:
        """Interrupt what may be."""
        self._begun = True
        for scope in self._scopes:
            scope.cancel()
