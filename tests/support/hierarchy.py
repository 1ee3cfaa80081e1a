"""Real cgroups for tests, which take root and cgroup v2."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gatepass.daemon.cgroups import hierarchy_root


class Hierarchy:
    """A slice of the test's own, and what is in it. The unit's name is nobody else's."""

    def __init__(self, root: str) -> None:
        name = f"gatepass-test-{os.getpid()}"
        self.unit = f"{name}.service"
        self.top = Path(root, f"{name}.slice")
        self._own = Path(root, Path("/proc/self/cgroup").read_text().partition("0::/")[2].splitlines()[0])

    def make(self, path: str) -> Path:
        """Make a cgroup and those above it. In `path`, UNIT stands for the unit's name."""
        directory = self.top / path.replace("UNIT", self.unit)
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    @contextmanager
    def inside(self, cgroup: Path) -> Iterator[None]:
        """Be in a cgroup for the time of the block; sockets that are made in it stay in it."""
        enter(cgroup)
        try:
            yield
        finally:
            enter(self._own)

    def remove(self) -> None:
        """Remove all of it."""
        for directory, _, _ in os.walk(self.top, topdown=False):
            Path(directory).rmdir()


def enter(cgroup: Path) -> None:
    """Be in a cgroup from now on."""
    (cgroup / "cgroup.procs").write_text("0")


@contextmanager
def own_hierarchy() -> Iterator[Hierarchy]:
    """Return a slice for the time of the block; skip the test where none can be made."""
    root = hierarchy_root(Path("/proc/self/mountinfo").read_text())
    if root is None or not os.access(root, os.W_OK) or Path(root, "cgroup.procs").stat().st_uid != 0:
        pytest.skip("needs cgroup v2, mounted so that cgroups can be made")
    hierarchy = Hierarchy(root)
    try:
        hierarchy.top.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        yield hierarchy
    finally:
        hierarchy.remove()
