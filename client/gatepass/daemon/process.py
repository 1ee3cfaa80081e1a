"""What a daemon does to its own process before it holds a secret: no core dump, no ptrace by its user's programs."""

from __future__ import annotations

import ctypes
import os
import resource
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # prctl(2)


def harden() -> None:
    """Keep memory from disks and debuggers, and new files from others. Raise `OSError` if the kernel refuses."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    # Also what PTRACE_ATTACH and /proc/PID/mem ask, from processes of the same user without CAP_SYS_PTRACE.
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")
