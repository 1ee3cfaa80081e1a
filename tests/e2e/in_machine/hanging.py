"""Runs a daemon that hangs when it is told to. Run by a test inside a booted machine, in place of a service's command.

    python hanging.py MODULE [ARGUMENT...]

From SIGUSR1 on, the thread that serves does nothing any more; the process and its other threads go on.
"""

from __future__ import annotations

import runpy
import signal
import sys
import threading
import time

A_WHILE = 3_600


def hang(*_: object) -> None:
    """Be busy with nothing."""
    print("hanging", file=sys.stderr, flush=True)
    time.sleep(A_WHILE)


def go_on() -> None:
    """Be another thread."""
    while True:
        time.sleep(0.1)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, hang)
    threading.Thread(target=go_on, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__")
