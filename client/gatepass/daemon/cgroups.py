"""The tree of cgroups (v2): which directory has an id, and what lies beneath it. Reads the cgroup file system.

An id is the inode of a cgroup's directory. The kernel gives it to no other cgroup until the next boot and renames none
(cgroups(7)), so a path once found for an id stays right for as long as that cgroup is there.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict, deque
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

MOST_KEPT: Final = 1_024
"""Paths that are remembered; the oldest is forgotten for a new one."""
MOST_READ: Final = 2_048
"""Directories that are read in search of an id: users can make any number of them."""
MOST_READ_WITHIN: Final = 64
"""Likewise beneath one cgroup, where its own user is the only one who makes any."""
MOST_CHILDREN: Final = 4_096
"""Cgroups that are looked at in one directory."""

_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_OCTAL: Final = re.compile(r"\\([0-7]{3})")

_Key = TypeVar("_Key")


def hierarchy_root(mountinfo: str) -> str | None:
    """Return where cgroup v2 is mounted from its root on (proc_pid_mountinfo(5)), or None if it is not."""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        root, mount_point = fields.split(" ")[3:5]
        if rest.startswith("cgroup2 ") and root == "/":
            return _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), mount_point)
    return None


class CgroupTree:
    """The cgroups below `root`, the directory where cgroup v2 is mounted; none if that is None.

    A path here is one in the hierarchy, from its root on: `/system.slice/nginx.service`, and `/` for the root itself.
    """

    def __init__(self, root: str | None) -> None:
        self._root = root
        self._paths: OrderedDict[int, str] = OrderedDict()
        self._ended: OrderedDict[int, None] = OrderedDict()
        """Ids that are in no directory of the whole tree."""
        self._unfound: OrderedDict[int, None] = OrderedDict()
        """Ids of which `is_within` could not find where they are."""
        self._outside: OrderedDict[tuple[int, int], None] = OrderedDict()
        """Pairs of which the first was not found within the second. No cgroup ever moves (cgroups(7))."""

    @classmethod
    def of_this_machine(cls) -> CgroupTree:
        """Return the one that is mounted here, as the unified hierarchy or beside the old ones ('hybrid')."""
        return cls(hierarchy_root(_MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape")))

    def id(self, path: str) -> int | None:
        """Return the id of the cgroup at `path`, or None if there is none."""
        if self._root is None:
            return None
        try:
            return os.stat(self._root + path, follow_symlinks=False).st_ino  # noqa: PTH116 - per connection
        except (OSError, ValueError):
            return None

    def path(self, cgroup: int) -> str | None:
        """Return the path of a cgroup, looked for in the whole tree if need be; None if it is not found.

        `cgroup` is the id of one that there is or was: once it is not there, it is not looked for again.
        """
        known = self._known(cgroup)
        return self._find(cgroup, "/", MOST_READ) if known is None and cgroup not in self._ended else known

    def is_within(self, inner: int, outer: int) -> bool:
        """Whether the cgroup with the id `inner` is `outer` or lies beneath it. What is not found does not.

        What was looked for in vain is not looked for again: whoever asks could have us search all the time.
        """
        if inner == outer:
            return True
        if outer in self._unfound or (inner, outer) in self._outside:
            return False
        if self._lies_beneath(inner, outer):
            return True
        _keep(self._outside, (inner, outer))
        return False

    def _lies_beneath(self, inner: int, outer: int) -> bool:
        above = self.path(outer)
        if above is None:
            _keep(self._unfound, outer)
            return False
        known = self._known(inner)
        if known is not None:
            return known.startswith(above if above == "/" else f"{above}/")
        return self._find(inner, above, MOST_READ_WITHIN) is not None

    def _known(self, cgroup: int) -> str | None:
        path = self._paths.get(cgroup)
        return path if path is not None and self.id(path) == cgroup else None

    def _find(self, cgroup: int, top: str, most: int) -> str | None:
        """Return the path of `cgroup` at or beneath `top`, if it is found in as many directories as `most`.

        The nearest are looked at first, so what users make for themselves comes after the system's.
        """
        if self._root is None:
            return None
        if self.id(top) == cgroup:
            return self._remember(cgroup, top)
        waiting, reads = deque([top.rstrip("/")]), 0
        while waiting and reads < most:
            path, reads = waiting.popleft(), reads + 1
            for entry in _children(f"{self._root}{path}"):
                below = f"{path}/{entry.name}"
                if entry.inode() == cgroup:
                    return self._remember(cgroup, below)
                if _has_children(entry):
                    waiting.append(below)
        if not waiting and top == "/":
            _keep(self._ended, cgroup)
        return None

    def _remember(self, cgroup: int, path: str) -> str:
        self._paths[cgroup] = path
        _bound(self._paths)
        return path


def _keep(kept: OrderedDict[_Key, None], key: _Key) -> None:
    """Remember the newest."""
    kept[key] = None
    _bound(kept)


def _bound(kept: OrderedDict[Any, Any]) -> None:
    if len(kept) > MOST_KEPT:
        kept.popitem(last=False)


def _children(directory: str) -> list[os.DirEntry[str]]:
    """Return the cgroups in a cgroup, which can end at any time."""
    with suppress(OSError), os.scandir(directory) as entries:
        children = (entry for entry in entries if entry.is_dir(follow_symlinks=False))
        return list(islice(children, MOST_CHILDREN))
    return []


def _has_children(entry: os.DirEntry[str]) -> bool:
    """Whether there may be cgroups in this one. The kernel counts a directory's directories as links, and two more."""
    try:
        return entry.stat(follow_symlinks=False).st_nlink != 2
    except OSError:
        return False
