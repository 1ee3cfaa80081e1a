"""How the demo looks: plain text of 100 columns, with colour where a terminal wants it."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Final, TextIO

from demo.rows import Outcome, Outcomes

_WIDTHS: Final = (27, 4, 9)
_LAST_WIDTH: Final = 100 - sum(_WIDTHS) - 2 * len(_WIDTHS)
_COLUMNS: Final = ("who calls, with what", "HTTP", "WebSocket", "as whom, or why not")

_COLOURS: Final = {"bold": "1", "in": "32", "refused": "33", "wrong": "1;31"}


class Table:
    """Writes to `out` as it goes: a row appears when it has been tried."""

    def __init__(self, out: TextIO, *, colour: bool) -> None:
        self._out = out
        self._colour = colour

    def text(self, paragraph: str) -> None:
        """Write a text as it is, and an empty line."""
        self._write(f"{paragraph}\n")

    def head(self) -> None:
        """Write the names of the columns."""
        self._write(self._painted(_line(_COLUMNS), "bold"))
        self._write(_line(["-" * width for width in (*_WIDTHS, _LAST_WIDTH)]))

    def row(self, title: str, outcomes: Outcomes) -> None:
        """Write what came of a row."""
        said = next((outcome.sentence for outcome in outcomes if outcome), "")
        cells = [title, *("-" if outcome is None else outcome.status for outcome in outcomes)]
        self._row(cells, said, [None, *outcomes])

    def row_not_tried(self, title: str, why: str) -> None:
        """Write that there is nothing to say about a row."""
        self._row([title, "-", "-"], f"not tried: {why}", [None] * 3)

    def wrong(self, sentence: str) -> None:
        """Write what is wrong with the row above."""
        for line in textwrap.wrap(f"WRONG: {sentence}", 96):
            self._write(self._painted(f"    {line}", "wrong"))

    def _row(self, cells: Sequence[str], said: str, outcomes: Sequence[Outcome | None]) -> None:
        first, *more = textwrap.wrap(said, _LAST_WIDTH) or [""]
        painted = [
            self._painted(f"{cell:<{width}}", "" if outcome is None else "in" if outcome.accepted else "refused")
            for cell, width, outcome in zip(cells, _WIDTHS, outcomes, strict=True)
        ]
        self._write("  ".join([*painted, first]).rstrip())
        for line in more:
            self._write(_line(["", "", "", line]))

    def _painted(self, text: str, colour: str) -> str:
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self._colour and colour else text

    def _write(self, line: str) -> None:
        self._out.write(f"{line}\n")
        self._out.flush()


def wants_colour(out: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether to use colour: on a terminal that can, unless NO_COLOR is set (no-color.org)."""
    return out.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def _line(cells: Sequence[str]) -> str:
    padded = [f"{cell:<{width}}" for cell, width in zip(cells, _WIDTHS, strict=False)]
    return "  ".join([*padded, cells[-1]]).rstrip()
