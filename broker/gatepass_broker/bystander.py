"""What would be seen of a process if it connected now: for an administrator who asks about it. Asks the kernel."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from gatepass.daemon.processes import has_exited, pidfs_inode
from gatepass_broker.caller import Caller
from gatepass_broker.peer import account
from gatepass_broker.places import Places

_EFFECTIVE: Final = 1
"""proc_pid_status(5), Uid and Gid: real, effective, saved, of the file system. SO_PEERCRED has the effective ones."""


def caller_of_process(pid: int, places: Places) -> Caller | None:
    """Return what the kernel says of the process that has `pid` now; None if there is none, or it is hidden from us."""
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, OverflowError):
        return None
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        uid, gid = (_numbers(status, name)[_EFFECTIVE] for name in ("Uid", "Gid"))
        place = places.find(pidfd, pid)
        caller = Caller(
            *account(uid, gid, frozenset(_numbers(status, "Groups"))),
            pid=pid,
            process=pidfs_inode(pidfd),
            cgroup=place.cgroup,
            nested=place.nested,
        )
        # Last: until here the pid was this process's.
        return None if has_exited(pidfd) else caller
    except (OSError, LookupError):
        return None
    finally:
        os.close(pidfd)


def _numbers(status: str, name: str) -> list[int]:
    """Return the numbers on a line. The first line, which is the program's own choice, cannot hold a line break."""
    found = re.search(rf"^{name}:([\t 0-9]*)$", status, re.MULTILINE)
    if found is None:
        raise LookupError(name)
    return [int(number) for number in found[1].split()]
