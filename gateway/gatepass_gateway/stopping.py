"""How the proxy ends without cutting anybody off in the middle of a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio


class Stopping:
    """Knows what may be interrupted when the proxy is told to stop; the rest is given time."""

    def __init__(self) -> None:
        self._scopes: dict[anyio.CancelScope, float] = {}
        self._begun = False

    @contextmanager
    def interruptible(self, seconds: float, *, grace: float = 0) -> Iterator[anyio.CancelScope]:
        """Run the block for at most `seconds`, and until `grace` seconds after the proxy is told to stop.

        `cancelled_caught` says that it was cut.
        """
        with anyio.move_on_after(seconds) as scope:
            if self._begun:
                _end_after(scope, grace)
            self._scopes[scope] = grace
            try:
                yield scope
            finally:
                del self._scopes[scope]

    def begin(self) -> None:
        """Interrupt what may be."""
        self._begun = True
        for scope, grace in self._scopes.items():
            _end_after(scope, grace)


def _end_after(scope: anyio.CancelScope, grace: float) -> None:
    if grace:
        scope.deadline = min(scope.deadline, anyio.current_time() + grace)
    else:
        scope.cancel()
