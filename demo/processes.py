"""The processes that the demo starts, and ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parent.parent
_STOP_SECONDS: Final = 5


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


def command(name: str) -> str:
    """Return the path of one of gatepass's own commands, as installed beside the Python that runs this."""
    return str(Path(sys.executable).with_name(name))


@contextmanager
def running(arguments: Sequence[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process for the time of the block, its standard error in `log`."""
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            arguments, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    with process:
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    """End a process, by force if it takes too long. One that has ended is left alone."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def first_line(process: subprocess.Popen[str], log: Path) -> str:
    """Return the first line that a process writes. Raise `DemoError` if it ends without one."""
    assert process.stdout is not None  # noqa: S101 - `running` has made it so
    line = process.stdout.readline()
    if not line:
        raise DemoError(f"a process of the demo did not start; it said:\n{log.read_text()}")
    return line.strip()
