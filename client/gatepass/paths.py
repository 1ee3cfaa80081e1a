"""Where the broker's sockets are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

SYSTEM_SOCKET: Final = "/run/gatepass/broker.sock"
ADMIN_SOCKET: Final = "/run/gatepass/admin.sock"
"""Where root administers the machine's broker."""
SOCKET_VARIABLE: Final = "GATEPASS_SOCKET"


def default_socket(environ: Mapping[str, str] = os.environ) -> str:
    """Return the path of the broker's socket: `$GATEPASS_SOCKET`, else a person's own broker, else the system's.

    A person's own is chosen only if its socket is there, so that nobody has to say which one a machine has.
    """
    return _named_or_own(environ) or SYSTEM_SOCKET


def admin_socket(environ: Mapping[str, str] = os.environ) -> str:
    """Return the path of the socket where the broker is administered: found likewise, but for the system's.

    A person's own broker has one socket for everything.
    """
    return _named_or_own(environ) or ADMIN_SOCKET


def personal_socket(environ: Mapping[str, str] = os.environ) -> str:
    """Return the path of a person's own broker, below `$XDG_RUNTIME_DIR` or where systemd-logind makes that."""
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return f"{runtime}/gatepass/broker.sock"


def _named_or_own(environ: Mapping[str, str]) -> str | None:
    named = environ.get(SOCKET_VARIABLE)
    if named:
        return named
    own = personal_socket(environ)
    return own if _is_ours(own) else None


def _is_ours(path: str) -> bool:
    """Whether there is such a file, of this user: `su` keeps another's `$XDG_RUNTIME_DIR`."""
    try:
        return os.stat(path).st_uid == os.geteuid()  # noqa: PTH116 - pathlib costs a login more than the rest here
    except OSError:
        return False
