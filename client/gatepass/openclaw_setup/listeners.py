"""Who listens on a port of this machine: the user, and the program where it can be seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from sys import byteorder
from typing import Final

from gatepass.openclaw_setup.facts import Listener

_TABLES: Final = ("tcp", "tcp6")
_LISTEN: Final = "0A"
"""TCP_LISTEN of <net/tcp_states.h>, as /proc/net/tcp writes it."""
_ANY: Final = ("0" * 8, "0" * 32)
"""0.0.0.0, and ::, which takes IPv4 too."""


def listener_on(port: int, address: str = "127.0.0.1") -> Listener | None:
    """Return who accepts connections to a loopback address at `port`, None if nobody does."""
    wanted = {*_ANY, *_as_listed(address)}
    for table in _TABLES:
        for bound, uid, inode in _listening(table, port):
            if bound in wanted:
                return Listener(uid, _program(inode))
    return None


def users_listening(port: int) -> frozenset[int]:
    """Return the uids of all who accept connections at `port`, at whatever address of this machine."""
    return frozenset(uid for table in _TABLES for _, uid, _ in _listening(table, port))


def _as_listed(address: str) -> tuple[str, ...]:
    """Return how the kernel lists an address: 32 bits at a time in the machine's byte order, IPv4 also within IPv6."""
    packed = ip_address(address).packed
    words = "".join(packed[at : at + 4][:: 1 if byteorder == "big" else -1].hex() for at in range(0, len(packed), 4))
    mapped = "0000FFFF" if byteorder == "big" else "FFFF0000"
    return (words.upper(), f"{'0' * 16}{mapped}{words.upper()}") if len(packed) == 4 else (words.upper(),)


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
