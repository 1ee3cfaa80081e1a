"""Where a caller runs: the cgroup of its process with units and slices, and its pid namespace. Asks the kernel.

A cgroup's id tells everything about it for as long as the machine is up, so each is looked up once.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from gatepass.daemon.cgroups import CgroupTree
from gatepass.daemon.processes import has_exited
from gatepass_broker import pidfd as pidfds
from gatepass_broker.caller import Cgroup
from gatepass_broker.cgroups import locate

MOST_KEPT: Final = 1_024
"""Cgroups that are remembered; the oldest is forgotten for a new one."""
REST: Final = 9
"""A search through the whole tree is followed by a pause so many times as long: a tenth of the time at most."""


class Place(NamedTuple):
    """Where a process runs. None is 'unknown'."""

    cgroup: Cgroup | None = None
    nested: bool | None = None
    unsettled: bool = False
    """Whether the cgroup is unknown only for now."""


class Places:
    """The cgroups in `tree`. `clock` gives seconds."""

    def __init__(self, tree: CgroupTree, clock: Callable[[], float] = time.monotonic) -> None:
        self._tree = tree
        self._clock = clock
        self._known: OrderedDict[int, Cgroup] = OrderedDict()
        self._rests_until = 0.0

    @classmethod
    def of_this_machine(cls) -> Places:
        """Return those in the hierarchy that is mounted here. Where /proc cannot be read, every place is unknown."""
        try:
            return cls(CgroupTree.of_this_machine())
        except OSError:
            return cls(CgroupTree(None))

    def find(self, pidfd: int, pid: int) -> Place:
        """Return where the process of `pidfd` runs, which is `pid` in our pid namespace."""
        cgroup = pidfds.cgroup_id(pidfd)
        if cgroup is not None and (known := self._known.get(cgroup)) is not None:
            return Place(known, pidfds.is_nested(pidfd, pid))
        nested = pidfds.is_nested(pidfd, pid)
        if nested is None:  # it has ended, or /proc is not of our pid namespace: what is said of the pid is not of it
            return Place()
        path = pidfds.cgroup_path(pid)
        if cgroup is None:
            return Place(self._by_path(path, pidfd), nested)
        found = None if path is None else self._learn(cgroup, path)
        if found is None and path is None and not has_exited(pidfd):
            return self._search(cgroup)._replace(nested=nested)
        return Place(found, nested)

    def _by_path(self, path: str | None, pidfd: int) -> Cgroup | None:
        """Return the cgroup at `path`, which was read by the pid: it was the process's if that has not ended since."""
        cgroup = None if path is None else self._tree.id(path)
        if path is None or cgroup is None or has_exited(pidfd):
            return None
        return self._known.get(cgroup) or self._learn(cgroup, path)

    def _search(self, cgroup: int) -> Place:
        """Find a cgroup of which only the id is known, since /proc does not show us the process (hidepid)."""
        begun = self._clock()
        if begun < self._rests_until:
            return Place(unsettled=True)
        path = self._tree.path(cgroup)
        self._rests_until = begun + (self._clock() - begun) * (1 + REST)
        return Place(None if path is None else self._learn(cgroup, path))

    def _learn(self, cgroup: int, path: str) -> Cgroup | None:
        """Return and remember the cgroup with that id, if it is the one at `path`."""
        located = locate(cgroup, path)
        if located is None:
            return None
        found, unit_path = located
        unit = self._tree.id(unit_path)
        # In this order: while this cgroup is there, those above it have been there all the time.
        if unit is None or self._tree.id(path) != cgroup:
            return None
        self._known[cgroup] = found._replace(unit_id=unit)
        if len(self._known) > MOST_KEPT:
            self._known.popitem(last=False)
        return self._known[cgroup]
