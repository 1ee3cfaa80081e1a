"""Where a process runs, with the kernel's answers made up and cgroups as plain directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatepass.daemon import cgroups
from gatepass.daemon.cgroups import CgroupTree
from gatepass_broker import places as places_module
from gatepass_broker.places import REST, Place, Places

PID = 4711
PIDFD = 99
UNIT = "/system.slice/openclaw.service"


class Kernel:
    """Tells of one process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.id: int | None = None
        self.path: str | None = None
        self.nested: bool | None = False
        self.exited = False
        self.paths_read = 0
        self.time = 100.0

    def make(self, path: str) -> int:
        directory = self.root / path.lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        return directory.stat().st_ino

    def put(self, path: str) -> int:
        """Let the process run in the cgroup at `path`, and return its id."""
        self.id, self.path = self.make(path), path
        return self.id

    def cgroup_path(self, pid: int) -> str | None:
        assert pid == PID
        self.paths_read += 1
        return self.path


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(tmp_path)
    monkeypatch.setattr("gatepass_broker.pidfd.cgroup_id", lambda pidfd: kernel.id)
    monkeypatch.setattr("gatepass_broker.pidfd.is_nested", lambda pidfd, pid: kernel.nested)
    monkeypatch.setattr("gatepass_broker.pidfd.cgroup_path", kernel.cgroup_path)
    monkeypatch.setattr(places_module, "has_exited", lambda pidfd: kernel.exited)
    return kernel


@pytest.fixture
def places(kernel: Kernel) -> Places:
    return Places(CgroupTree(str(kernel.root)), clock=lambda: kernel.time)


def unit_of(place: Place) -> str | None:
    return None if place.cgroup is None else place.cgroup.unit_name


@pytest.mark.parametrize("tells_id", [True, False], ids=["Linux 6.13", "before"])
def test_a_cgroup_with_its_units_own(kernel: Kernel, places: Places, tells_id: bool) -> None:
    cgroup, unit = kernel.put(f"{UNIT}/worker"), kernel.make(UNIT)
    kernel.id = cgroup if tells_id else None
    found = places.find(PIDFD, PID)
    assert found.cgroup is not None
    assert (found.cgroup.id, found.cgroup.unit_id, found.cgroup.path) == (cgroup, unit, f"{UNIT}/worker")
    assert (unit_of(found), found.nested, found.unsettled) == ("openclaw.service", False, False)


def test_a_cgroup_is_looked_up_once(kernel: Kernel, places: Places) -> None:
    kernel.put(UNIT)
    first = places.find(PIDFD, PID)
    kernel.nested = True
    assert places.find(PIDFD, PID) == first._replace(nested=True)
    assert kernel.paths_read == 1


def test_13_the_path_read_by_a_pid_must_be_that_of_the_id(kernel: Kernel, places: Places) -> None:
    """The process ended after it was asked for its id, and another one with its pid was read."""
    mine, kernel.path = kernel.make("/user.slice/x.scope"), UNIT
    kernel.make(UNIT)
    kernel.id = mine
    assert places.find(PIDFD, PID) == Place(None, False)


def test_13_without_an_id_the_process_must_be_alive_after_the_path_was_read(kernel: Kernel, places: Places) -> None:
    kernel.put(UNIT)
    kernel.id, kernel.exited = None, True
    assert places.find(PIDFD, PID).cgroup is None


def test_a_cgroup_made_anew_with_the_same_path_is_another(kernel: Kernel, places: Places) -> None:
    before = kernel.put(UNIT)
    assert places.find(PIDFD, PID).cgroup is not None
    (kernel.root / UNIT.lstrip("/")).rename(kernel.root / "kept")
    kernel.put(UNIT)
    found = places.find(PIDFD, PID).cgroup
    assert found is not None
    assert (found.id, found.unit_id) == (kernel.id, kernel.id) != (before, before)


def test_a_unit_that_is_started_anew_while_it_is_looked_up_is_unknown(kernel: Kernel, places: Places) -> None:
    """Its cgroup was there for `id` of the unit's, and is another one when its own is compared."""
    kernel.put(f"{UNIT}/worker")
    tree = places._tree
    known = tree.id

    def restarted(path: str) -> int | None:
        return known(path) if path == UNIT else 1

    tree.id = restarted  # type: ignore[method-assign]
    assert places.find(PIDFD, PID).cgroup is None


@pytest.mark.parametrize("path", ["/../system.slice/openclaw.service", "/nowhere", "/system.slice/a.service (deleted)"])
@pytest.mark.parametrize("tells_id", [True, False])
def test_a_path_that_leads_nowhere_is_unknown(kernel: Kernel, places: Places, path: str, tells_id: bool) -> None:
    kernel.id, kernel.path = kernel.make("/system.slice/a.service") if tells_id else None, path
    assert places.find(PIDFD, PID) == Place(None, False)


def test_a_process_that_is_not_seen_here_has_no_place(kernel: Kernel, places: Places) -> None:
    kernel.put(UNIT)
    kernel.nested = None
    assert places.find(PIDFD, PID) == Place()


def test_where_proc_hides_the_process_its_cgroup_is_searched_for(kernel: Kernel, places: Places) -> None:
    kernel.put(f"{UNIT}/worker")
    kernel.path = None
    assert unit_of(places.find(PIDFD, PID)) == "openclaw.service"


def test_nothing_is_searched_for_a_process_that_has_ended(
    kernel: Kernel, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.put(UNIT)
    kernel.path, kernel.exited = None, True
    monkeypatch.setattr(CgroupTree, "path", None)
    assert places.find(PIDFD, PID) == Place(None, False)


def test_31_searches_take_a_tenth_of_the_time_whoever_causes_them(
    kernel: Kernel, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = cgroups._children

    def slow(directory: str) -> object:
        kernel.time += 0.5
        return children(directory)

    monkeypatch.setattr(cgroups, "_children", slow)
    kernel.put("/a")
    kernel.path = None
    begun = kernel.time
    assert places.find(PIDFD, PID).cgroup is not None
    took = kernel.time - begun
    kernel.put("/b/c")
    kernel.path = None
    assert places.find(PIDFD, PID) == Place(None, False, unsettled=True)
    kernel.time = begun + took * (1 + REST)
    found = places.find(PIDFD, PID)
    assert found.cgroup is not None
    assert not found.unsettled


def test_what_is_remembered_is_bounded(kernel: Kernel, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places_module, "MOST_KEPT", 2)
    for name in "abcd":
        kernel.put(f"/{name}.service")
        assert places.find(PIDFD, PID).cgroup is not None
    assert len(places._known) == 2


def test_where_proc_is_not_to_be_read_every_place_is_unknown(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> None:
    monkeypatch.setattr(cgroups, "_MOUNTINFO", Path("/nowhere"))
    kernel.put(UNIT)
    assert Places.of_this_machine().find(PIDFD, PID) == Place(None, False)
