"""Who is calling, as a value. How it is learned is in `peer`."""

from __future__ import annotations

from typing import NamedTuple


class Caller(NamedTuple):
    """The process that opened a connection. None is 'unknown'."""

    uid: int | None
    gid: int | None
    groups: frozenset[int]
    """Supplementary groups, as they were at connect."""
    pid: int | None
    process: int | None
    """Inode of the process in pidfs (Linux 6.9): never used again until the next boot, unlike a pid."""
