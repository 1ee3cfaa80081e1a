"""Lists for people: columns, moments, how many of what."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from gatepass.cli.manners import plain

GAP: Final = "  "


def in_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; nothing in it is cut off, so the last column can be what is copied from it."""
    lines = [list(header), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        GAP.join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def moment(seconds: int) -> str:
    """Return a time, in seconds since the epoch, as local clocks show it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def count(number: int, noun: str) -> str:
    """Return `1 session`, `2 sessions`, `no session`."""
    return f"{number or 'no'} {noun}{'s' * (number > 1)}"


def members(value: object) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Return a value of NamedTuples as what JSON has for it: objects, arrays, and the rest as it is."""
    if isinstance(value, tuple):
        named = getattr(value, "_asdict", None)
        return [members(item) for item in value] if named is None else members(named())
    if isinstance(value, dict):
        return {name: members(item) for name, item in value.items()}
    return value
