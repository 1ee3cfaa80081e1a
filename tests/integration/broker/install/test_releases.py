"""Releases as they come and go, of a program that is small."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from gatepass.errors import ConfigurationError
from gatepass_broker.install import release
from gatepass_broker.install.layout import Layout
from gatepass_broker.install.release import Blueprint
from gatepass_broker.install.requirements import Source

NAMES = ("1-a", "1-b", "1-c", "1-d")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path / "root")
    found.root.mkdir()
    return found


def plan(directory: Path, name: str = NAMES[0]) -> Blueprint:
    """A release of one module, and a command that runs it."""
    module = directory / "small.py"
    module.write_text("def main():\n    print('it runs')\n")
    module.chmod(0o777)
    source = Source("sub/small.py", module, None)
    return Blueprint(name, "1", 1, (source,), (("small", "sub.small", "main"),), 10)


def make(layout: Layout, name: str) -> None:
    """Put something where a release lies."""
    (layout.releases / name / "bin").mkdir(parents=True)
    (layout.releases / name / release.COMPLETE).touch()


def test_it_is_closed_to_others_whatever_modes_and_umask_were(layout: Layout, tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        release.make_places(layout)
        release.make(layout, plan(tmp_path))
    finally:
        os.umask(umask)
    for path in (layout.home, *layout.home.rglob("*")):
        assert path.is_symlink() or not stat.S_IMODE(path.stat().st_mode) & 0o022, path
    release.switch(layout, NAMES[0])
    done = subprocess.run([layout.command("small")], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "it runs\n"


def test_one_that_was_interrupted_does_not_count_and_is_made_anew(layout: Layout, tmp_path: Path) -> None:
    release.make_places(layout)
    half = layout.releases / NAMES[0] / "half"
    half.mkdir(parents=True)
    assert not release.is_complete(layout, NAMES[0])
    release.make(layout, plan(tmp_path))
    assert release.is_complete(layout, NAMES[0])
    assert not half.exists()


def test_one_whose_source_changes_meanwhile_never_counts(layout: Layout, tmp_path: Path) -> None:
    release.make_places(layout)
    wanted = plan(tmp_path)
    changed = wanted._replace(sources=(wanted.sources[0]._replace(expected="of-what-was-installed"),))
    with pytest.raises(ConfigurationError, match="changed after it was installed"):
        release.make(layout, changed)
    assert not release.is_complete(layout, NAMES[0])


def test_switching_is_one_step_and_relative(layout: Layout) -> None:
    assert release.current(layout) is None
    for name in NAMES[:2]:
        make(layout, name)
        release.switch(layout, name)
        assert release.current(layout) == name
        assert layout.current.readlink() == Path("releases", name)


def test_the_one_in_use_and_the_one_before_are_kept(layout: Layout) -> None:
    assert release.dispensable(layout) == []
    for number, name in enumerate(NAMES):
        make(layout, name)
        os.utime(layout.releases / name, (number, number))
        release.switch(layout, name)
    assert [path.name for path in release.dispensable(layout)] == ["1-a", "1-b"]


def test_half_a_release_is_not_taken_for_the_one_before(layout: Layout) -> None:
    for name in NAMES[:2]:
        make(layout, name)
    (layout.releases / "1-c").mkdir()
    release.switch(layout, "1-b")
    assert [path.name for path in release.dispensable(layout)] == ["1-c"]


def test_one_that_runs_is_kept(layout: Layout) -> None:
    for number, name in enumerate(NAMES[:3]):
        make(layout, name)
        os.utime(layout.releases / name, (number, number))
    release.switch(layout, "1-c")
    # As the kernel starts the interpreter that a command names in its first line.
    command = [str(layout.releases / "1-a" / "bin" / "python"), "-"]
    with subprocess.Popen(command, executable="/bin/cat", stdin=subprocess.PIPE) as process:
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes():  # the kernel is not done with its start
            time.sleep(0.001)
        assert release.dispensable(layout) == []
        process.communicate(timeout=10)
    assert [path.name for path in release.dispensable(layout)] == ["1-a"]
