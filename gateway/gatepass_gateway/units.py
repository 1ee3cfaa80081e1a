"""Which systemd unit a socket was made in: the cgroup that the kernel tells of it, and the unit's cgroup directory.

Only units of the system manager count. A directory called `nginx.service` is the unit's if all those above it are
slices, because PID 1 alone makes slices and what lies in them. Below a service or scope that is delegated, such as
`user@1000.service`, a user makes directories of any name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from gatepass.daemon.cgroups import hierarchy_root

_MOUNTINFO: Final = Path("/proc/self/mountinfo")


class Units:
    """The units of the system manager whose cgroups lie below `root`; none if that is None."""

    def __init__(self, root: str | None) -> None:
        self._root = root

    @classmethod
    def of_this_machine(cls) -> Units:
        """Return those that systemd has here, in the unified hierarchy or beside the old ones ('hybrid')."""
        return cls(hierarchy_root(_MOUNTINFO.read_text()))

    def hold(self, unit: str, cgroup: int | None) -> bool:
        """Whether the id `cgroup` is that of the unit's cgroup as it is now, or of one beneath it. Unknown is not.

        The id changes with each start of the unit, so nothing of this is kept.
        """
        if self._root is None or cgroup is None:
            return False
        return any(cgroup in _ids(f"{parent}/{unit}") for parent in _slices(self._root))


def _slices(directory: str) -> Iterator[str]:
    """Yield `directory` and the slices beneath it."""
    yield directory
    for name in _children(directory):
        if name.endswith(".slice"):
            yield from _slices(f"{directory}/{name}")


def _ids(directory: str) -> Iterator[int]:
    """Yield the ids of a cgroup and those beneath it; none if there is no such cgroup."""
    with suppress(OSError):
        yield os.stat(directory).st_ino  # noqa: PTH116 - asked at every connection of a reverse proxy
        for name in _children(directory):
            yield from _ids(f"{directory}/{name}")


def _children(directory: str) -> list[str]:
    """Return the names of the cgroups in a cgroup, which can end at any time."""
    with suppress(OSError), os.scandir(directory) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []
