"""Holding on to one process: by a pidfd, which stays that process's for ever, unlike a pid. Asks the kernel.

A process is named by its pid and the inode of its pidfds (Linux 6.9 and later): the pid finds it, and the inode, which
no other process has until the next boot, shows that it is the one.
"""

from __future__ import annotations

import os
import select
from functools import cache

from gatepass.claims import Process


def open_process(process: Process) -> int | None:
    """Return a pidfd of `process`, which polls readable when that has ended; None if it has, or nothing is known of it.

    The caller closes it.
    """
    try:
        pidfd = os.pidfd_open(process.pid)
    except (OSError, OverflowError):  # no such process here; no call or no descriptor to be had; pid out of range
        return None
    try:
        if pidfs_inode(pidfd) == process.inode and not has_exited(pidfd):
            held, pidfd = pidfd, -1
            return held
    except OSError:
        return None
    finally:
        if pidfd != -1:
            os.close(pidfd)
    return None


def is_alive(process: Process) -> bool:
    """Whether `process` is known to be alive."""
    pidfd = open_process(process)
    if pidfd is None:
        return False
    os.close(pidfd)
    return True


def has_exited(pidfd: int) -> bool:
    """Whether the process of `pidfd` has ended: all its threads, though its parent may not know yet. pidfd_open(2)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def pidfs_inode(pidfd: int) -> int | None:
    """Return the inode of the process of `pidfd` in pidfs, or None before Linux 6.9. Raise `OSError`."""
    status = os.fstat(pidfd)
    return None if status.st_dev == _anonymous_device() else status.st_ino


@cache
def _anonymous_device() -> int:
    """The device of files without a file system of their own: pidfds were such before Linux 6.9, all of one inode."""
    descriptor = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)
