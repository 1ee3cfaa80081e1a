"""What the kernel tells of a process by its pidfd, and a pidfd for a connection's process. Asks the kernel.

A pid is free for others as soon as its process has been waited for. What is learned by a pid therefore counts only if
the pidfd shows afterwards that the process is still there: then the pid was its own all the while.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import time
from typing import Final, NamedTuple

from gatepass.daemon.processes import has_exited

# linux/pidfd.h, Linux 6.13: struct pidfd_info, which begins with mask, cgroupid, pid; and its flag for the cgroup.
PIDFD_GET_INFO: Final = 0xC040FF0B
"""_IOWR(0xFF, 11, 64 bytes)."""
_INFO_SIZE: Final = 64
_INFO_CGROUPID: Final = 1 << 2
_INFO: Final = struct.Struct("=QQ")
_ASK_FOR_CGROUP: Final = _INFO.pack(_INFO_CGROUPID, 0) + bytes(_INFO_SIZE - _INFO.size)

_NSPID: Final = re.compile(rb"^Pid:\t([0-9]+)\nNSpid:\t\1((?:\t[0-9]+)*)$", re.MULTILINE)
_CGROUP_V2: Final = re.compile(rb"^0::(/.*)$", re.MULTILINE)
_READ_AT_MOST: Final = 8_192
"""A path has 4,096 bytes at most, and version 1 has a line for each hierarchy."""
_STARTTIME: Final = 22 - 3
"""proc_pid_stat(5): field 22, counted from the first after the name, which is field 3."""

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_SPARE_TICKS: Final = 2
"""The start is rounded down to a tick; one more, so as not to depend on how."""
_NANOSECONDS: Final = 10**9


class Held(NamedTuple):
    """What can be held of the process on the other end of a connection."""

    pidfd: int | None = None
    """The caller closes it."""
    gone: bool = False
    """Whether the process has ended already."""
    unsettled: bool = False
    """Whether it is only too young to be told from one that had its pid before."""


UNKNOWN: Final = Held()


def boottime() -> int:
    """Return the time since the boot, sleep included, in nanoseconds: the clock of processes' start times."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def hold_by_pid(pid: int, absent_at: int | None) -> Held:
    """Hold the process that made a connection as `pid`, where the kernel gives no pidfd with it (before Linux 6.5).

    `absent_at` is a `boottime` at which the connection was not there yet. A process that has the pid now and had begun
    by then had it all the while, so it is the one. Raise `OSError` where there is no descriptor to be had.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL):  # EINVAL: it is being waited for at this moment
            return Held(gone=True)
        if error.errno in (errno.ENOSYS, errno.EPERM):  # before Linux 5.3; forbidden to us
            return UNKNOWN
        raise
    try:
        begun = _begun_by(pidfd, pid)
        gone = has_exited(pidfd)  # after reading: what was read of the pid was this process's
    except BaseException:
        os.close(pidfd)
        raise
    if begun is not None and absent_at is not None and begun < absent_at and not gone:
        return Held(pidfd)
    os.close(pidfd)
    # The caller's pid is that of a process which has ended: the caller's own, or one that came after it.
    return Held(gone=gone, unsettled=begun is not None and not gone)


def _begun_by(pidfd: int, pid: int) -> int | None:
    """Return a `boottime` by which the process of `pidfd`, which has `pid`, had begun; None if that is hidden."""
    stat = _read(f"/proc/{pid}/stat")
    if stat is None or visible_as(pidfd) != pid:
        return None
    # The name, in parentheses, is whatever its program likes; what comes after it is numbers.
    fields = stat.rpartition(b") ")[2].split()
    return (int(fields[_STARTTIME]) + _SPARE_TICKS) * _NANOSECONDS // _TICKS_PER_SECOND


def cgroup_id(pidfd: int) -> int | None:
    """Return the id of the cgroup (v2) of the process of `pidfd`, or None if the kernel does not tell (before 6.13)."""
    try:
        mask, cgroup = _INFO.unpack_from(fcntl.ioctl(pidfd, PIDFD_GET_INFO, _ASK_FOR_CGROUP))
    except OSError:
        return None
    return cgroup if mask & _INFO_CGROUPID else None


def cgroup_path(pid: int) -> str | None:
    """Return the path of the cgroup (v2) of the process that has `pid`, as seen from our cgroup namespace.

    None if there is no such process, or it is hidden from us (proc(5), hidepid). Source: cgroups(7).
    """
    match = _CGROUP_V2.search(_read(f"/proc/{pid}/cgroup") or b"")
    return os.fsdecode(match[1]) if match else None


def visible_as(pidfd: int) -> int | None:
    """Return the pid of the process of `pidfd` here, None if it has been waited for or is not seen from here."""
    seen = _seen(pidfd)
    return seen[0] if seen else None


def is_nested(pidfd: int, pid: int) -> bool | None:
    """Whether the process of `pidfd`, which is `pid` here, lives in a pid namespace beneath ours; None if unknown.

    Source: proc_pid_fdinfo(5) and proc_pid_status(5), NSpid: its pid here and in each namespace beneath.
    """
    seen = _seen(pidfd)
    return seen[1] if seen is not None and seen[0] == pid else None


def _seen(pidfd: int) -> tuple[int, bool] | None:
    """Return the pid and whether there are namespaces beneath, as /proc shows them."""
    match = _NSPID.search(_read(f"/proc/self/fdinfo/{pidfd}") or b"")
    return (int(match[1]), bool(match[2])) if match and match[1] != b"0" else None


def _read(name: str) -> bytes | None:
    """Return what the kernel writes into a file of /proc, or None. In one read: it is not cut off in between."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(descriptor, _READ_AT_MOST)
    except OSError:  # it has ended since
        return None
    finally:
        os.close(descriptor)
