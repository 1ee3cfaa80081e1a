"""What a demo needs to be shown: something that runs, and the rows that are tried on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

from demo.calls import Call
from demo.rows import Expected, Outcomes, Row

ALICE: Final = "alice@example.com"
"""Comes through the reverse proxy; nobody on this machine is she."""

FORWARDED: Final = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
"""What a reverse proxy says of the browser it speaks for."""

_NO_SECOND_USER: Final = "it takes a second user; run this as root"


class Stage(NamedTuple):
    """Everything is running, as long as the block lasts that gave this."""

    explanation: str
    rows: Iterator[Row]
    next_steps: str


def row(send: Callable[[Call], Outcomes], title: str, expected: Expected, call: Call | None) -> Row:
    """Return the row that sends `call`, which is None if it takes a user that there is not."""
    if call is None:
        return Row(title, expected, None, _NO_SECOND_USER)
    return Row(title, expected, partial(send, call))
