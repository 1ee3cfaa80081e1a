"""Who is calling: what the kernel says about the other end of a Unix connection, read once, at accept.

Credentials are those of the moment of `connect`: whoever holds the socket later, after a fork, an exec or a transfer,
still speaks as the process that opened it. What cannot be learned is None, and None never matches a rule.

The kernel names the process in one of three ways, and none of them can name another that has its pid since:

- Linux 6.13: a pidfd comes with the connection (SO_PEERPIDFD), and tells the cgroup (PIDFD_GET_INFO);
- Linux 6.5: a pidfd comes with the connection; the cgroup is read in /proc while the pidfd shows the process alive;
- before: the pidfd is opened by the pid, and counts if its process began before the connection (`pidfd.hold_by_pid`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from functools import cache
from pathlib import Path
from typing import Final, Protocol

from gatepass.daemon.processes import has_exited, pidfs_inode
from gatepass_broker.caller import Caller
from gatepass_broker.pidfd import UNKNOWN, Held, hold_by_pid
from gatepass_broker.places import Place, Places

# Not in Python's socket module. Source: asm-generic/socket.h.
SO_PEERGROUPS: Final = 59
SO_PEERPIDFD: Final = 77

_UCRED: Final = struct.Struct("iII")  # pid, uid, gid: unix(7), struct ucred
_GROUPS_AT_FIRST: Final = 1_024
"""Bytes offered for the groups: as much as Python's getsockopt gives. Four bytes each, so 256 groups."""
_GROUPS_AT_MOST: Final = 65_536 * 4
"""NGROUPS_MAX of Linux."""


class SocketOptions(Protocol):
    """What is needed of a socket here; asyncio and uvloop each have their own class for it."""

    def fileno(self) -> int:
        """Return the descriptor."""

    def getsockopt(self, level: int, name: int, size: int, /) -> bytes:
        """Return the option's bytes."""


class Peer:
    """The caller on one connection, with a hold on its process where the kernel gives one.

    Close it with the connection: it owns a file descriptor.
    """

    def __init__(self, caller: Caller, pidfd: int | None, *, gone: bool = False) -> None:
        self.caller = caller
        self._pidfd = pidfd
        self._gone = gone

    def has_exited(self) -> bool:
        """Whether the process that opened the connection is known to have ended."""
        if not self._gone and self._pidfd is not None:
            self._gone = has_exited(self._pidfd)
        return self._gone

    def close(self) -> None:
        """Let go of the process."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def attest(connection: SocketOptions, places: Places, absent_at: int | None = None) -> Peer:
    """Return who opened `connection`. Raise `OSError` where the kernel does not tell: then nobody may be served.

    `absent_at` is a `pidfd.boottime` at which the connection was not there yet, needed where pidfds do not come with
    connections. The caller closes the `Peer`.
    """
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    groups = _peer_groups(connection)
    held = _hold(connection, pid, absent_at)
    try:
        # Pid 0 is a process of a pid namespace that is not seen from here: its user is all that is known of it.
        seen = held.pidfd if pid else None
        place = Place() if seen is None else places.find(seen, pid)
        caller = Caller(
            *account(uid, gid, groups),
            pid=pid or None,
            process=None if seen is None else pidfs_inode(seen),
            cgroup=place.cgroup,
            nested=place.nested,
            unsettled=held.unsettled or place.unsettled,
        )
    except BaseException:
        if held.pidfd is not None:
            os.close(held.pidfd)
        raise
    return Peer(caller, held.pidfd, gone=held.gone)


def account(uid: int, gid: int, groups: frozenset[int]) -> tuple[int | None, int | None, frozenset[int]]:
    """Return what the kernel calls a process's user and groups, without those that stand for 'unknown here'."""
    return (
        None if uid == overflow_uid() else uid,
        None if gid == overflow_gid() else gid,
        groups - {overflow_gid()},
    )


def pidfds_come_with_connections() -> bool:
    """Whether the kernel gives a connection's process as a pidfd (Linux 6.5)."""
    near, far = socket.socketpair()
    with near, far:
        held = _peer_pidfd(near)
    if held is None or held.pidfd is None:
        return False
    os.close(held.pidfd)
    return True


def _peer_groups(connection: SocketOptions) -> frozenset[int]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _GROUPS_AT_FIRST)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        raw = _all_peer_groups(connection.fileno())
    return frozenset(struct.unpack(f"{len(raw) // 4}I", raw))


def _all_peer_groups(descriptor: int) -> bytes:
    """For a member of more than 256 groups: getsockopt(2) itself, since Python's stops at 1,024 bytes."""
    buffer = ctypes.create_string_buffer(_GROUPS_AT_MOST)
    size = ctypes.c_uint32(_GROUPS_AT_MOST)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(descriptor, socket.SOL_SOCKET, SO_PEERGROUPS, buffer, ctypes.byref(size)) != 0:
        raise OSError(ctypes.get_errno(), "SO_PEERGROUPS")
    return buffer.raw[: size.value]


def _hold(connection: SocketOptions, pid: int, absent_at: int | None) -> Held:
    held = _peer_pidfd(connection)
    if held is not None:
        return held
    return hold_by_pid(pid, absent_at) if pid else UNKNOWN


def _peer_pidfd(connection: SocketOptions) -> Held | None:
    """Return the hold that the kernel gives on the caller's process; None if it gives none with any connection."""
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL):
            return Held(gone=True)
        if error.errno == errno.ENODATA:  # a peer without a process
            return UNKNOWN
        if error.errno == errno.ENOPROTOOPT:  # before Linux 6.5
            return None
        raise
    return Held(struct.unpack("i", raw)[0])


@cache
def overflow_uid() -> int:
    """Return the uid that stands for users whom this user namespace does not know: user_namespaces(7)."""
    return int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))


@cache
def overflow_gid() -> int:
    """Return the gid that stands for groups which this user namespace does not know: user_namespaces(7)."""
    return int(Path("/proc/sys/kernel/overflowgid").read_text(encoding="ascii"))
