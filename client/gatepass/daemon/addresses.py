"""The loopback addresses of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_IPV6_ADDRESSES: Final = Path("/proc/self/net/if_inet6")


def has_ipv6_loopback() -> bool:
    """Return whether there is ::1 here. Without a socket: not every unit may open one of that family."""
    try:
        lines = _IPV6_ADDRESSES.read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    return any(int(line.split()[0], 16) == 1 for line in lines)
