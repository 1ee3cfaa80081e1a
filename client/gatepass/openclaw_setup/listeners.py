"""Who listens on a port of this machine: the user, and the program where it can be seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gatepass.openclaw_setup.facts import Listener

_TABLES: Final = ("tcp", "tcp6")
_LISTEN: Final = "0A"
"""TCP_LISTEN of <net/tcp_states.h>, as /proc/net/tcp writes it."""
_LOCAL: Final = frozenset(
    {
        "0100007F",  # 127.0.0.1, in the byte order of the machine
        "7F000001",
        "00000000",
        "0" * 32,  # ::, which takes IPv4 too
        "0000000000000000FFFF00000100007F",  # ::ffff:127.0.0.1
    }
)


def listener_on(port: int) -> Listener | None:
    """Return who accepts connections to 127.0.0.1 at `port`, None if nobody does."""
    for table in _TABLES:
        for address, uid, inode in _listening(table, port):
            if address in _LOCAL:
                return Listener(uid, _program(inode))
    return None


def users_listening(port: int) -> frozenset[int]:
    """Return the uids of all who accept connections at `port`, at whatever address of this machine."""
    return frozenset(uid for table in _TABLES for _, uid, _ in _listening(table, port))


def _listening(table: str, port: int) -> Iterator[tuple[str, int, str]]:
    """Yield address, uid and inode of the sockets that listen at `port`."""
    try:
        lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        fields = line.split()
        address, _, number = fields[1].partition(":")
        if fields[3] == _LISTEN and int(number, 16) == port:
            yield address, int(fields[7]), fields[9]


def _program(inode: str) -> str | None:
    wanted = f"socket:[{inode}]"
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and wanted in _descriptors(process):
            return _title(process)
    return None


def _descriptors(process: Path) -> Iterator[str]:
    try:
        for descriptor in (process / "fd").iterdir():
            yield os.readlink(descriptor)  # noqa: PTH115 - a socket is no path
    except OSError:
        return


def _title(process: Path) -> str | None:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip() or None
    except OSError:
        return None
