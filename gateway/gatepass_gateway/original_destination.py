"""Where a connection was sent before a firewall on this machine redirected it, as its conntrack entry says."""

from __future__ import annotations

import socket
import struct
from typing import Final

from gatepass_gateway.sock_diag import Address

_SO_ORIGINAL_DST: Final = 80
"""The same number at SOL_IP and, as IP6T_SO_ORIGINAL_DST, at SOL_IPV6: <linux/netfilter_ipv4.h>, netfilter_ipv6."""

_IPV4: Final = struct.Struct("!2xH4s8x")
_IPV6: Final = struct.Struct("!2xH4x16s4x")
"""struct sockaddr_in and sockaddr_in6: the port and the address."""


def original_destination(connection: socket.socket) -> Address:
    """Return where the client of an accepted TCP connection connected to: the far end that its own socket has.

    That is our end's address where nothing was redirected: there is no conntrack in the kernel (ENOPROTOOPT), or no
    entry for the connection (ENOENT).
    """
    here = numeric(connection.getsockname())
    try:
        if "." in here[0]:
            port, packed = _IPV4.unpack(connection.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _IPV4.size))
            return socket.inet_ntop(socket.AF_INET, packed), port
        port, packed = _IPV6.unpack(connection.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _IPV6.size))
        return socket.inet_ntop(socket.AF_INET6, packed), port
    except OSError:
        return here


def numeric(name: tuple[str, int, *tuple[object, ...]]) -> Address:
    """Return an address as `getsockname` gives it. IPv4 in the form of IPv6 becomes IPv4, which is how it travels."""
    return name[0].removeprefix("::ffff:"), name[1]
