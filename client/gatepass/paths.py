"""Where the broker's socket is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

SYSTEM_SOCKET: Final = "/run/gatepass/broker.sock"
SOCKET_VARIABLE: Final = "GATEPASS_SOCKET"


def default_socket(environ: Mapping[str, str] = os.environ) -> str:
    """Return the path of the broker's socket: `$GATEPASS_SOCKET`, else a person's own broker, else the system's.

    A person's own is chosen only if its socket is there, so that nobody has to say which one a machine has.
    """
    named = environ.get(SOCKET_VARIABLE)
    if named:
        return named
    own = personal_socket(environ)
    return own if os.access(own, os.F_OK) else SYSTEM_SOCKET


def personal_socket(environ: Mapping[str, str] = os.environ) -> str:
    """Return the path of a person's own broker, below `$XDG_RUNTIME_DIR` or where systemd-logind makes that."""
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return f"{runtime}/gatepass/broker.sock"
