"""Who is calling: what the kernel says about the other end of a Unix connection, read once, at accept.

Credentials are those of the moment of `connect`: whoever holds the socket later, after a fork, an exec or a transfer,
still speaks as the process that opened it. What cannot be learned is None, and None never matches a rule.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
from functools import cache
from pathlib import Path
from typing import Final, Protocol

from gatepass_broker.caller import Caller

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
        """Whether the process that opened the connection is known to have ended. Source: pidfd_open(2), poll."""
        if not self._gone and self._pidfd is not None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            self._gone = bool(poll.poll(0))
        return self._gone

    def close(self) -> None:
        """Let go of the process."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def attest(connection: SocketOptions) -> Peer:
    """Return who opened `connection`. Raise `OSError` where the kernel does not tell: then nobody may be served.

    The caller closes the `Peer`.
    """
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    groups = _peer_groups(connection)
    pidfd, gone = _peer_pidfd(connection)
    try:
        caller = Caller(
            uid=None if uid == overflow_uid() else uid,
            gid=None if gid == overflow_gid() else gid,
            groups=groups - {overflow_gid()},
            # 0 is a process of a pid namespace that is not seen from here.
            pid=pid or None,
            process=None if pidfd is None else _pidfs_inode(pidfd),
        )
    except BaseException:
        if pidfd is not None:
            os.close(pidfd)
        raise
    return Peer(caller, pidfd, gone=gone)


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


def _peer_pidfd(connection: SocketOptions) -> tuple[int | None, bool]:
    """Return a pidfd of the caller's process, if there can be one, and whether that process is gone already."""
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL):
            return None, True
        if error.errno in (errno.ENOPROTOOPT, errno.ENODATA):  # before Linux 6.5; a peer without a process
            return None, False
        raise
    return struct.unpack("i", raw)[0], False


def _pidfs_inode(pidfd: int) -> int | None:
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


@cache
def overflow_uid() -> int:
    """Return the uid that stands for users whom this user namespace does not know: user_namespaces(7)."""
    return int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))


@cache
def overflow_gid() -> int:
    """Return the gid that stands for groups which this user namespace does not know: user_namespaces(7)."""
    return int(Path("/proc/sys/kernel/overflowgid").read_text(encoding="ascii"))
