"""Which cgroups are a unit's: by directories in a tree that is laid out as systemd does it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatepass_gateway.units import Units

UNIT = "nginx.service"


def make(root: Path, path: str) -> int:
    """Make a directory and return the id that it would have as a cgroup."""
    (root / path).mkdir(parents=True, exist_ok=True)
    return (root / path).stat().st_ino


@pytest.mark.parametrize(
    "path",
    [
        "system.slice/nginx.service",
        "nginx.service",
        "web.slice/web-front.slice/nginx.service",
        "system.slice/nginx.service/worker",
        "system.slice/nginx.service/a/b.service/c.slice",
    ],
)
def test_a_directory_called_as_the_unit_below_nothing_but_slices_is_the_units_with_all_beneath_it(
    tmp_path: Path, path: str
) -> None:
    make(tmp_path, "system.slice/other.service")
    cgroup = make(tmp_path, path)
    assert Units(str(tmp_path)).hold(UNIT, cgroup)


@pytest.mark.parametrize(
    "path",
    [
        "user.slice/user-1000.slice/user@1000.service/nginx.service",
        "user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service",
        "user.slice/user-1000.slice/user@1000.service/system.slice/nginx.service",
        "user.slice/user-1000.slice/session-1.scope/nginx.service",
        "system.slice/delegated.service/x.slice/nginx.service",
        "machine.slice/machine-x.scope/payload/system.slice/nginx.service",
        "system.slice/system-nginx.slice",
        "system.slice/nginx.service.d",
        "system.slice/xnginx.service",
        "system.slice/Nginx.service",
        "system.slice",
        ".",
    ],
)
def test_what_users_can_make_is_not_the_units_whatever_it_is_called(tmp_path: Path, path: str) -> None:
    make(tmp_path, "system.slice/nginx.service")
    assert not Units(str(tmp_path)).hold(UNIT, make(tmp_path, path))


def test_a_unit_that_does_not_run_holds_nothing(tmp_path: Path) -> None:
    make(tmp_path, "system.slice")
    assert not Units(str(tmp_path)).hold(UNIT, 1)


def test_after_a_restart_the_new_cgroup_counts_and_the_old_one_does_not(tmp_path: Path) -> None:
    units = Units(str(tmp_path))
    before = make(tmp_path, "system.slice/nginx.service")
    assert units.hold(UNIT, before)
    (tmp_path / "system.slice/nginx.service").rename(tmp_path / "system.slice/other.service")
    after = make(tmp_path, "system.slice/nginx.service")
    assert (units.hold(UNIT, before), units.hold(UNIT, after)) == (False, True)


@pytest.mark.parametrize("root", [None, "/nowhere"])
def test_where_there_is_no_unified_hierarchy_no_unit_holds_anything(root: str | None) -> None:
    assert not Units(root).hold(UNIT, 1)


def test_an_unknown_cgroup_is_in_no_unit(tmp_path: Path) -> None:
    make(tmp_path, "system.slice/nginx.service")
    assert not Units(str(tmp_path)).hold(UNIT, None)


def test_this_machines_mounts_can_be_read() -> None:
    Units.of_this_machine()
