"""Who owns a TCP socket of this machine, asked of the kernel (sock_diag(7), NETLINK_SOCK_DIAG).

An exact look-up costs the kernel one hash probe and is answered inside `send`, so asking from the event loop
blocks nothing. It needs no privilege within a network namespace, and tells the uid and the cgroup, never a pid.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLM_F_REQUEST: Final = 1
_NLM_F_DUMP: Final = 0x300
_ESTABLISHED: Final = 1
_LISTEN: Final = 10
_ALL_STATES: Final = 0xFFFFFFFF
_TIME_WAIT: Final = 6
_NEW_SYN_RECV: Final = 12
_SENDING_STATES: Final = (1 << _NEW_SYN_RECV) - 2 & ~(1 << _TIME_WAIT | 1 << _LISTEN)
"""Of sockets that have two ends, and something to send or yet to come."""
_ANY_COOKIE: Final = b"\xff" * 8
_OVERFLOW_UID: Final = 65534
_INET_DIAG_CGROUP_ID: Final = 21
_INET_DIAG_REQ_BYTECODE: Final = 1
_BC_LOCAL: Final = 7  # INET_DIAG_BC_S_COND
_BC_REMOTE: Final = 8  # INET_DIAG_BC_D_COND

# struct nlmsghdr; struct inet_diag_req_v2 with its struct inet_diag_sockid: <linux/netlink.h>, <linux/inet_diag.h>
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_REQUEST: Final = struct.Struct("=BBBxI")
_PORTS: Final = struct.Struct("!HH")
_CONDITION: Final = struct.Struct("=BBHBBxxI")  # struct inet_diag_bc_op and inet_diag_hostcond
_REPLY: Final = struct.Struct("=BBBB48sIIIII")

Address = tuple[str, int]
"""A numeric IP address and a port."""


class OwnedSocket(NamedTuple):
    """A TCP socket as the kernel describes it."""

    uid: int
    inode: int
    cookie: bytes
    """Names this one socket for as long as the machine runs; a port that is bound again has another cookie."""
    cgroup: int | None = None
    """The cgroup (v2) in which it was made, by the inode of its directory on a 64-bit machine. The kernel tells it
    since 5.8, unasked, if it was built to; None otherwise."""


class SockDiag:
    """A netlink socket to ask with. Not safe for threads; close it, or use it as a context manager."""

    def __init__(self) -> None:
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        self._netlink.settimeout(1)  # never needed: the answer is queued before `send` returns
        self._sequence = 0

    def close(self) -> None:
        """Close the netlink socket."""
        self._netlink.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close the netlink socket."""
        self.close()

    def connected(self, local: Address, remote: Address) -> OwnedSocket | None:
        """Return the end at `local` of the connection to `remote`, or None if its owner is unknown.

        Only an ESTABLISHED socket with an inode counts: for one that was closed or shut down the kernel says
        uid 0, which would make its former owner root. The uid of an unmapped user is unknown too, and so is who has an
        end that another socket has as well: ask before anything is sent.
        """
        found = self.seems_connected(local, remote)
        return found if found is not None and self._is_only_one(local, remote) else None

    def seems_connected(self, local: Address, remote: Address) -> OwnedSocket | None:
        """Return what `connected` does if no other socket has that end too. Any user can make that look-up slow."""
        found = self._find(local, remote, _ESTABLISHED)
        return None if found is None or found.inode == 0 or found.uid == _OVERFLOW_UID else found

    def is_accepted(self, local: Address, remote: Address) -> bool:
        """Whether the end at `local` of the connection to `remote` waits in no listener's queue any more."""
        found = self._find(local, remote, _ESTABLISHED)
        return found is not None and found.inode != 0

    def taken_by(self, uid: int, local: Address, remote: Address) -> bool | None:
        """Whether the end at `local` of the connection to `remote` waits to be accepted, or is a socket of `uid`.

        None if nobody has that end.

        A connection need not have been taken by the listener: a socket that is bound to its port and dials our port
        at the same time gets it (simultaneous open, RFC 9293 section 3.5). That one has an inode and its owner's uid;
        what waits in a listener's queue has no inode yet.
        """
        found = self._find(local, remote, _ESTABLISHED)
        return None if found is None else found.inode == 0 or found.uid == uid

    def strangers_on(self, address: Address, uid: int) -> set[int]:
        """Return the users, other than root and `uid`, who hold sockets bound to `address`, or to its port anywhere.

        They could take connections that are meant for its listener. Before Linux 6.8 the kernel does not tell of
        sockets that are bound and nothing else.
        """
        owners = set()
        host, port = address
        for family in _families(host):
            here = {_padded(family, host), bytes(16)}
            for message in self._dump(family, _ALL_STATES, port):
                *_, found_id, _, _, _, owner, inode = _REPLY.unpack_from(message)
                # The kernel does not apply the port to sockets that are bound and nothing else.
                if inode and _PORTS.unpack_from(found_id)[0] == port and found_id[4:20] in here:
                    owners.add(owner)
        return owners - {0, uid}

    def _is_only_one(self, local: Address, remote: Address) -> bool:
        """Whether just one socket has the end at `local` of the connection to `remote`.

        Any user may bind a connected socket to a device (SO_BINDTODEVICE, since Linux 5.7), and the kernel then gives
        its addresses and ports to the next as well. It tells of the later one only, and what the earlier one sends is
        taken for that one's, where the numbers of both are near each other: they are for some milliseconds. Linux
        since 6.7 takes nothing from it before we have sent something.
        """
        condition = _condition(local, remote)
        found = (self._dump(family, _SENDING_STATES, local[1], condition) for family in _families(local[0]))
        return sum(1 for messages in found for _ in messages) == 1

    def _dump(self, family: int, states: int, port: int, condition: bytes = b"") -> Iterator[bytes]:
        body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, states) + _PORTS.pack(port, 0)
        self._send(body + bytes(36) + _ANY_COOKIE + condition, _NLM_F_REQUEST | _NLM_F_DUMP)
        while True:
            answer = self._netlink.recv(65_536)
            while answer:
                length, kind, _, sequence, _ = _HEADER.unpack_from(answer)
                if sequence == self._sequence:
                    if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                        return
                    yield answer[_HEADER.size : length]
                answer = answer[(length + 3) & ~3 :]

    def listener(self, address: Address) -> OwnedSocket | None:
        """Return the socket that accepts connections to `address`, or None if there is none."""
        anywhere = "::" if ":" in address[0] else "0.0.0.0"
        return self._find(address, (anywhere, 0), _LISTEN)

    def _find(self, local: Address, remote: Address, state: int) -> OwnedSocket | None:
        reply = self._ask(local, remote)
        if reply is None:
            return None
        family, found_state, _, _, found_id, _, _, _, uid, inode = _REPLY.unpack_from(reply)
        # The kernel falls back from a connection to any listener on its port: what was found must be what was asked.
        if found_state != state or (state == _ESTABLISHED and found_id[:36] != _endpoints(family, local, remote)):
            return None
        return OwnedSocket(uid, inode, found_id[40:48], _cgroup(reply[_REPLY.size :]))

    def _ask(self, local: Address, remote: Address) -> bytes | None:
        family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET
        body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _ALL_STATES)
        body += _endpoints(family, local, remote) + bytes(4) + _ANY_COOKIE  # on any interface
        self._send(body, _NLM_F_REQUEST)
        while True:
            answer = self._netlink.recv(8192)
            length, kind, _, sequence, _ = _HEADER.unpack_from(answer)
            if sequence == self._sequence:
                return None if kind == _NLMSG_ERROR else answer[_HEADER.size : length]

    def _send(self, body: bytes, flags: int) -> None:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        size = _HEADER.size + len(body)
        self._netlink.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, flags, self._sequence, 0) + body)


def _cgroup(attributes: bytes) -> int | None:
    """Return the cgroup id among the attributes (struct nlattr, <linux/netlink.h>) of a reply, if it is there."""
    while len(attributes) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _INET_DIAG_CGROUP_ID:
            return int.from_bytes(attributes[_ATTRIBUTE.size : length], sys.byteorder)
        attributes = attributes[max(_ATTRIBUTE.size, (length + 3) & ~3) :]
    return None


def _condition(local: Address, remote: Address) -> bytes:
    """Return the attribute by which the kernel dumps sockets with these ends alone: any user can have many others."""
    family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET  # which is that of mapped addresses too
    program = b""
    for code, (host, port) in ((_BC_REMOTE, remote), (_BC_LOCAL, local)):
        packed = ipaddress.ip_address(host).packed
        size = _CONDITION.size + len(packed)
        # Where it does not hold, on to behind the end.
        no = size + len(program) + 4
        program = _CONDITION.pack(code, size, no, family, 8 * len(packed), port) + packed + program
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(program), _INET_DIAG_REQ_BYTECODE) + program


def _families(host: str) -> tuple[int, ...]:
    """Return the families of the sockets that can have an address: those of IPv6 can have one of IPv4."""
    return (socket.AF_INET6,) if ":" in host else (socket.AF_INET, socket.AF_INET6)


def _endpoints(family: int, local: Address, remote: Address) -> bytes:
    """Return the head of a struct inet_diag_sockid: both ports, both addresses in 16 bytes each.

    An IPv4 connection of an AF_INET6 socket, which is what Java opens, is described with mapped addresses.
    """
    return _PORTS.pack(local[1], remote[1]) + _padded(family, local[0]) + _padded(family, remote[0])


def _padded(family: int, host: str) -> bytes:
    """Return an address in the 16 bytes that it has in a struct inet_diag_sockid."""
    packed = ipaddress.ip_address(host).packed
    if family == socket.AF_INET6 and len(packed) == 4:
        packed = b"\0" * 10 + b"\xff" * 2 + packed
    return packed.ljust(16, b"\0")
