"""Having a child process end with its parent, however that ends."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>


def ends_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Return what a child of this process calls first (`preexec_fn`), to be sent signal `number` when this thread ends.

    Only where there is no other thread yet.
    """
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it ended before it could be asked to tell
            os.kill(os.getpid(), number)

    return prepare
