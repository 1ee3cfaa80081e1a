"""Real cgroups (v2) for tests, made as root below a slice of the test's own, and taken away again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gatepass.daemon.cgroups import hierarchy_root


class Slice:
    """A slice in the root of the hierarchy, as PID 1 would make it."""

    def __init__(self, root: str) -> None:
        self._root = root
        self.name = f"gatepass_test_{os.getpid()}.slice"
        self.top = Path(root, self.name)

    def make(self, path: str = "") -> Path:
        """Make the cgroup at `path` below the slice, with those above it."""
        cgroup = self.top / path
        cgroup.mkdir(parents=True, exist_ok=True)
        return cgroup

    def path(self, cgroup: Path) -> str:
        """Return its path in the hierarchy."""
        return "/" + str(cgroup.relative_to(self._root))

    @contextmanager
    def inside(self, cgroup: Path) -> Iterator[None]:
        """Run this process, and what it forks, in `cgroup` for the time of the block."""
        enter(cgroup)
        try:
            yield
        finally:
            enter(Path(self._root))

    def remove(self) -> None:
        """Take it away with all beneath. No process may be left in it."""
        for directory, _, _ in os.walk(self.top, topdown=False):
            Path(directory).rmdir()


def enter(cgroup: Path) -> None:
    """Move this process into `cgroup`."""
    (cgroup / "cgroup.procs").write_text("0")


def test_slice() -> Slice:
    """Return a new slice; the test is skipped where none can be made. Only for tests that start in the root cgroup."""
    root = hierarchy_root(Path("/proc/self/mountinfo").read_text())
    if os.geteuid() != 0 or root is None or not os.access(root, os.W_OK):
        pytest.skip("needs root, and cgroup v2 mounted so that cgroups can be made")
    if "\n0::/\n" not in "\n" + Path("/proc/self/cgroup").read_text():
        pytest.skip("needs to run in the root cgroup, to come back to it")
    made = Slice(root)
    try:
        made.make()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    return made


test_slice.__test__ = False  # type: ignore[attr-defined]
