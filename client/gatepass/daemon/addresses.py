"""The loopback addresses of this machine, and those of them that the redirect leads to."""

from __future__ import annotations

from pathlib import Path
from typing import Final

REDIRECTED_TO: Final = ("127.0.0.1", "127.0.0.2", "::1")
"""Where the redirect leads what is sent to 127.0.0.1, to any other IPv4 address of this machine, to an IPv6 one.

Connections from one address and port to two of this machine's would be one at the proxy, so the kernel would give the
second another port, and it would be refused. Apart, nobody is refused at 127.0.0.1 for what another sent elsewhere.
"""

_IPV6_ADDRESSES: Final = Path("/proc/self/net/if_inet6")


def addresses_redirected_to() -> tuple[str, ...]:
    """Return those of `REDIRECTED_TO` that this machine has. Some machines have no IPv6."""
    return REDIRECTED_TO if has_ipv6_loopback() else tuple(address for address in REDIRECTED_TO if ":" not in address)


def has_ipv6_loopback() -> bool:
    """Return whether there is ::1 here. Without a socket: not every unit may open one of that family."""
    try:
        lines = _IPV6_ADDRESSES.read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    return any(int(line.split()[0], 16) == 1 for line in lines)
