"""`python -m demo`, which `make demo` runs: show the table, and fail if a row is not as it must be."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final, NoReturn

from demo.embedded import embedded
from demo.processes import DemoError
from demo.rows import Row, faults
from demo.stage import Stage
from demo.table import Table, wants_colour
from gatepass.errors import GatepassError

DONE: Final = 0
FAILURE: Final = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="Show who gets in at a gateway, and as whom.")
    parser.add_argument("--openclaw", action="store_true", help="with an unmodified OpenClaw, installed from npm")
    options = parser.parse_args(arguments)
    interrupts = _Interrupts()
    try:
        status = _run(openclaw=options.openclaw)
    except (DemoError, GatepassError, AssertionError, OSError) as error:
        if not interrupts.status:
            print(f"\ngatepass demo: {error}", file=sys.stderr)
        status = FAILURE
    return interrupts.status or status


class _Interrupts:
    """Ends the demo on Ctrl-C or SIGTERM; whatever was started is ended on the way out.

    It is also remembered, because an exception that is raised inside one of `fork`'s hooks is lost.
    """

    def __init__(self) -> None:
        self.status = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._end)

    def _end(self, number: int, _frame: FrameType | None) -> NoReturn:
        self.status = 128 + number
        raise SystemExit(self.status)


def _run(*, openclaw: bool) -> int:
    table = Table(sys.stdout, colour=wants_colour(sys.stdout))
    if not openclaw:
        with embedded() as stage:
            return _show(stage, table)
    # What it imports is only needed here, and OpenClaw's installation is announced as it goes.
    from demo.openclaw import behind_the_proxy  # noqa: PLC0415

    with behind_the_proxy() as stage:
        return _show(stage, table)


def _show(stage: Stage, table: Table) -> int:
    """Try each row and write what came of it. Return the exit status."""
    table.text(stage.explanation)
    table.head()
    tried, wrong = 0, []
    for row in stage.rows:
        found = _try(row, table)
        tried += found is not None
        wrong += [row.title] if found else []
    if wrong:
        table.text(f"\nWRONG: {', '.join(wrong)}. Please report this.")
        return FAILURE
    table.text(f"\nAll {tried} rows that were tried are as they must be.")
    table.text(stage.next_steps)
    return DONE


def _try(row: Row, table: Table) -> list[str] | None:
    """Show a row and return what is wrong with it, or None if it cannot be tried here."""
    if row.attempt is None:
        table.row_not_tried(row.title, row.not_tried)
        return None
    outcomes = row.attempt()
    table.row(row.title, outcomes)
    found = faults(row.expected, outcomes)
    for fault in found:
        table.wrong(fault)
    return found


if __name__ == "__main__":
    sys.exit(main())
