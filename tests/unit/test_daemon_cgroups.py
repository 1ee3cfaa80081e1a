"""Where a cgroup is, by its id: in directories laid out as the kernel does it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gatepass.daemon import cgroups
from gatepass.daemon.cgroups import CgroupTree, hierarchy_root

USER = "/user.slice/user-1000.slice/user@1000.service"


def make(root: Path, path: str) -> int:
    """Make a directory and return the id that it would have as a cgroup."""
    (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    return (root / path.lstrip("/")).stat().st_ino


def test_id_and_path_of_a_cgroup(tmp_path: Path) -> None:
    tree = CgroupTree(str(tmp_path))
    for path in ("/", "/system.slice", "/system.slice/a.service/b/c"):
        cgroup = make(tmp_path, path)
        assert (tree.id(path), tree.path(cgroup)) == (cgroup, path)


def test_what_is_equal_or_beneath_is_within_and_nothing_else(tmp_path: Path) -> None:
    unit = make(tmp_path, "/system.slice/a.service")
    beneath = [make(tmp_path, f"/system.slice/a.service/{name}") for name in ("x", "x/y", "z")]
    others = [make(tmp_path, path) for path in ("/system.slice/a.service.d", "/system.slice", f"{USER}/a.service", "/")]
    for tree in (CgroupTree(str(tmp_path)), CgroupTree(str(tmp_path))):
        assert [tree.is_within(inner, unit) for inner in (unit, *beneath)] == [True] * 4
        assert [tree.is_within(inner, unit) for inner in others] == [False] * 4
        for inner in others:
            tree.path(inner)
        assert [tree.is_within(inner, unit) for inner in others] == [False] * 4  # now that they are known
    root = make(tmp_path, "/")
    assert tree.is_within(beneath[1], root)
    assert CgroupTree(str(tmp_path)).is_within(beneath[1], root)


def test_after_a_restart_of_the_unit_the_old_cgroup_holds_nothing(tmp_path: Path) -> None:
    tree = CgroupTree(str(tmp_path))
    before = make(tmp_path, "/system.slice/a.service")
    assert tree.path(before) == "/system.slice/a.service"
    (tmp_path / "system.slice/a.service").rename(tmp_path / "old")  # so that the inode is not used again
    after = make(tmp_path, "/system.slice/a.service/x")
    shutil.rmtree(tmp_path / "old")
    assert (tree.path(before), tree.is_within(after, before)) == (None, False)


def test_a_cgroup_that_has_ended_is_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = CgroupTree(str(tmp_path))
    make(tmp_path, "/system.slice")
    assert tree.path(1) is None
    monkeypatch.setattr(cgroups, "_children", None)
    assert tree.path(1) is None


def test_what_is_not_beneath_a_cgroup_is_found_elsewhere_still(tmp_path: Path) -> None:
    unit, other = make(tmp_path, "/system.slice/a.service"), make(tmp_path, "/user.slice/b.scope")
    tree = CgroupTree(str(tmp_path))
    assert not tree.is_within(other, unit)
    assert tree.path(other) == "/user.slice/b.scope"


def test_31_a_user_who_makes_cgroups_without_end_hides_none_of_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "MOST_READ", 12)
    units = {}
    for name in "abcde":
        for number in range(15):
            make(tmp_path, f"/{name}.slice/user@1000.service/{number}/{number}/x")
        units[f"/{name}.slice/z.service"] = make(tmp_path, f"/{name}.slice/z.service")
    for path, unit in units.items():
        assert CgroupTree(str(tmp_path)).path(unit) == path


def test_31_a_search_ends_though_the_tree_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = {make(tmp_path, f"/{number}/x"): f"/{number}/x" for number in range(20)}
    monkeypatch.setattr(cgroups, "MOST_READ", 5)
    tree = CgroupTree(str(tmp_path))
    read: list[str] = []
    children = cgroups._children

    def counted(directory: str) -> object:
        read.append(directory)
        return children(directory)

    monkeypatch.setattr(cgroups, "_children", counted)
    assert tree.path(1) is None
    assert len(read) == 5
    assert None in [tree.path(cgroup) for cgroup in deep]
    monkeypatch.setattr(cgroups, "MOST_READ", 50)
    assert {cgroup: tree.path(cgroup) for cgroup in deep} == deep  # a search that was cut short says nothing for good


def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "MOST_KEPT", 3)
    ids = {make(tmp_path, f"/{number}"): f"/{number}" for number in range(10)}
    tree = CgroupTree(str(tmp_path))
    assert {cgroup: tree.path(cgroup) for cgroup in ids} == ids
    assert len(tree._paths) == 3
    for gone in range(5):
        assert tree.path(gone + 1) is None
    assert len(tree._ended) == 3


@pytest.mark.parametrize("root", [None, "/nowhere"])
def test_where_there_is_no_hierarchy_there_are_no_cgroups(root: str | None) -> None:
    tree = CgroupTree(root)
    assert (tree.id("/"), tree.path(1), tree.is_within(2, 1)) == (None, None, False)
    assert tree.is_within(1, 1)


@pytest.mark.parametrize("path", ["/a\0b", "/" + "x" * 5_000, "/nowhere"])
def test_a_path_that_cannot_be_has_no_id(tmp_path: Path, path: str) -> None:
    assert CgroupTree(str(tmp_path)).id(path) is None


UNIFIED = "35 24 0:30 / /sys/fs/cgroup rw,nosuid,nodev shared:9 - cgroup2 cgroup2 rw,nsdelegate"
HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"""


@pytest.mark.parametrize(
    ("mountinfo", "root"),
    [
        (UNIFIED, "/sys/fs/cgroup"),
        (HYBRID, "/sys/fs/cgroup/unified"),
        ("1 2 0:30 / /odd\\040place rw - cgroup2 none rw", "/odd place"),
        ("1 2 0:30 /user.slice /mnt rw - cgroup2 none rw\n" + UNIFIED, "/sys/fs/cgroup"),
        ("1 2 0:30 /../.. /sys/fs/cgroup rw - cgroup2 none rw", None),
        (HYBRID.rpartition("\n")[0], None),
        ("", None),
    ],
)
def test_the_hierarchy_is_where_version_2_is_mounted_from_its_root_on(mountinfo: str, root: str | None) -> None:
    assert hierarchy_root(mountinfo) == root


def test_this_machines_tree_can_be_read() -> None:
    tree = CgroupTree.of_this_machine()
    root = tree.id("/")
    if root is not None:
        assert tree.path(root) == "/"


def test_31_what_was_looked_for_in_vain_is_not_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user can have sockets in cgroups that are gone, tokens of units that are gone, and cgroups without end."""
    unit = make(tmp_path, "/user.slice/a.service")
    for number in range(200):
        make(tmp_path, f"/user.slice/a.service/{number}/x")
    read: list[str] = []
    children = cgroups._children

    def counted(directory: str) -> object:
        read.append(directory)
        return children(directory)

    monkeypatch.setattr(cgroups, "_children", counted)
    monkeypatch.setattr(cgroups, "MOST_READ", 20)
    tree = CgroupTree(str(tmp_path))
    tree.path(unit)
    read.clear()
    for _ in range(5):
        assert not tree.is_within(1, unit)
    assert len(read) <= cgroups.MOST_READ_WITHIN
    read.clear()
    for inner in range(50):
        assert not tree.is_within(inner + 10, 2)
    assert len(read) <= 20


def test_31_a_directory_without_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "MOST_CHILDREN", 5)
    ids = {make(tmp_path, f"/{number}") for number in range(20)}
    tree = CgroupTree(str(tmp_path))
    assert sum(tree.path(cgroup) is not None for cgroup in ids) == 5
