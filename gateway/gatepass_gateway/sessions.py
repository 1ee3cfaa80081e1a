"""How many WebSockets are logged in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Sessions:
    """Counts them."""

    def __init__(self) -> None:
        self.open = 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Count one for as long as the block runs."""
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1
