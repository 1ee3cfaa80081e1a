"""What the path of a cgroup says, and what a path that imitates another's does not."""

from __future__ import annotations

from typing import Any

import pytest

from gatepass_broker.caller import Cgroup
from gatepass_broker.cgroups import locate

HEX = "0123456789abcdef" * 4
USER = "/user.slice/user-1000.slice/user@1000.service"
IN_USER: dict[str, Any] = {
    "unit": "user@1000.service",
    "slices": ("user.slice", "user-1000.slice"),
    "manager_uid": 1000,
}
SYSTEM = ("system.slice",)
PODS = ("kubepods.slice", "kubepods-burstable.slice", "kubepods-burstable-pod1_2.slice")


def place(path: str) -> dict[str, Any]:
    """Return what is known from the path, without what is not."""
    located = locate(7, path)
    assert located is not None
    cgroup, _ = located
    assert (cgroup.id, cgroup.path, cgroup.unit_id) == (7, path, None)
    return {name: value for name, value in cgroup._asdict().items() if value not in (None, (), 7, path)}


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/", {}),
        ("/init.scope", {"unit": "init.scope"}),
        ("/system.slice", {"slices": SYSTEM}),
        ("/system.slice/openclaw.service", {"unit": "openclaw.service", "slices": SYSTEM}),
        ("/system.slice/openclaw.service/a/b.service", {"unit": "openclaw.service", "slices": SYSTEM}),
        ("/system.slice/gatepass-broker.socket", {"unit": "gatepass-broker.socket", "slices": SYSTEM}),
        ("/system.slice/var-lib.mount", {"unit": "var-lib.mount", "slices": SYSTEM}),
        ("/system.slice/dev-sda2.swap", {"unit": "dev-sda2.swap", "slices": SYSTEM}),
        (
            "/system.slice/system-getty.slice/getty@tty1.service",
            {"unit": "getty@tty1.service", "slices": ("system.slice", "system-getty.slice")},
        ),
        (r"/system.slice/a\x2db.service", {"unit": r"a\x2db.service", "slices": SYSTEM}),
        ("/system.slice/_cgroup.service", {"unit": "cgroup.service", "slices": SYSTEM}),
        ("/system.slice/__x.service", {"unit": "_x.service", "slices": SYSTEM}),
        ("/_cpu.slice/a.service", {"unit": "a.service", "slices": ("cpu.slice",)}),
        (
            "/user.slice/user-1000.slice/session-3.scope",
            {"unit": "session-3.scope", "slices": ("user.slice", "user-1000.slice")},
        ),
        (USER, IN_USER),
        (f"{USER}/init.scope", IN_USER | {"user_unit": "init.scope"}),
        (f"{USER}/app.slice", IN_USER | {"user_slices": ("app.slice",)}),
        (
            f"{USER}/app.slice/app-x.slice/tui.service/sub",
            IN_USER | {"user_unit": "tui.service", "user_slices": ("app.slice", "app-x.slice")},
        ),
        (f"{USER}/app.slice/_tasks.scope", IN_USER | {"user_unit": "tasks.scope", "user_slices": ("app.slice",)}),
        (f"/system.slice/docker-{HEX}.scope", {"unit": f"docker-{HEX}.scope", "slices": SYSTEM, "container": HEX}),
        (
            f"/machine.slice/libpod-{HEX}.scope/container/x",
            {"unit": f"libpod-{HEX}.scope", "slices": ("machine.slice",), "container": HEX},
        ),
        (
            f"/{'/'.join(PODS)}/cri-containerd-{HEX}.scope",
            {"unit": f"cri-containerd-{HEX}.scope", "slices": PODS, "container": HEX},
        ),
        (f"/{'/'.join(PODS)}/crio-{HEX}.scope", {"unit": f"crio-{HEX}.scope", "slices": PODS, "container": HEX}),
        (f"/docker/{HEX}", {"container": HEX}),
        (f"/docker/{HEX}/init.scope", {"container": HEX}),
        (f"/kubepods/burstable/pod1-2/{HEX}", {"container": HEX}),
        (f"/kubepods/pod1-2/crio-{HEX}", {"container": HEX}),
        (f"/libpod_parent/libpod-{HEX}/x", {"container": HEX}),
    ],
)
def test_what_systemd_and_container_runtimes_make(path: str, known: dict[str, Any]) -> None:
    assert place(path) == known


@pytest.mark.parametrize(
    ("path", "known"),
    [
        # A user's own scope, slice or service of any name.
        (f"{USER}/openclaw.service", IN_USER | {"user_unit": "openclaw.service"}),
        (
            f"{USER}/system.slice/openclaw.service",
            IN_USER | {"user_unit": "openclaw.service", "user_slices": ("system.slice",)},
        ),
        (
            f"{USER}/user.slice/user-0.slice/user@0.service/x.service",
            IN_USER | {"user_unit": "user@0.service", "user_slices": ("user.slice", "user-0.slice")},
        ),
        (f"{USER}/docker-{HEX}.scope", IN_USER | {"user_unit": f"docker-{HEX}.scope"}),
        (f"{USER}/docker/{HEX}", IN_USER),
        (f"{USER}/x/openclaw.service", IN_USER),
        # What a service or scope makes below itself, delegated or not.
        (
            f"/system.slice/a.service/system.slice/docker-{HEX}.scope",
            {"unit": "a.service", "slices": SYSTEM},
        ),
        ("/system.slice/a.service/user@1000.service/x.service", {"unit": "a.service", "slices": SYSTEM}),
        ("/user.slice/session-1.scope/openclaw.service", {"unit": "session-1.scope", "slices": ("user.slice",)}),
        # A container's own systemd, as seen from outside.
        (f"/docker/{HEX}/system.slice/openclaw.service", {"container": HEX}),
        ("/payload/system.slice/openclaw.service", {}),
        ("/lxc.payload.x/system.slice/openclaw.service", {}),
        # Names that only look like one.
        ("/system.slice/openclaw.service.d", {"slices": SYSTEM}),
        ("/system.slice/.service", {"slices": SYSTEM}),
        ("/system.slice/_.service", {"slices": SYSTEM}),
        ("/system.slice/@.service", {"slices": SYSTEM}),
        ("/system.slice/a b.service", {"slices": SYSTEM}),
        ("/system.slice/öpenclaw.service", {"slices": SYSTEM}),
        ("/system.slice/openclaw.SERVICE", {"slices": SYSTEM}),
        ("/system.slice/" + "a" * 248 + ".service", {"slices": SYSTEM}),
        ("/user.slice/user@.service/x.scope", {"unit": "user@.service", "slices": ("user.slice",)}),
        ("/user.slice/user@01.service/x.scope", {"unit": "user@01.service", "slices": ("user.slice",)}),
        ("/user.slice/user@x1000.service/x.scope", {"unit": "user@x1000.service", "slices": ("user.slice",)}),
        ("/user.slice/user@4294967295.service/x.scope", {"unit": "user@4294967295.service", "slices": ("user.slice",)}),
        ("/user.slice/user@9999999999.service/x.scope", {"unit": "user@9999999999.service", "slices": ("user.slice",)}),
        ("/user.slice/user@\u0661.service/x.scope", {"slices": ("user.slice",)}),
        (f"/system.slice/libpod-conmon-{HEX}.scope", {"unit": f"libpod-conmon-{HEX}.scope", "slices": SYSTEM}),
        (f"/system.slice/docker-{HEX}0.scope", {"unit": f"docker-{HEX}0.scope", "slices": SYSTEM}),
        (f"/system.slice/docker-{HEX.upper()}.scope", {"unit": f"docker-{HEX.upper()}.scope", "slices": SYSTEM}),
        (f"/system.slice/docker-{HEX}.service", {"unit": f"docker-{HEX}.service", "slices": SYSTEM}),
        (f"/x/docker/{HEX}", {}),
        (f"/docker/{HEX}x", {}),
        (f"/kubepods/{HEX}", {}),
    ],
)  # fmt: skip
def test_25_what_others_can_make_is_not_what_its_name_says(path: str, known: dict[str, Any]) -> None:
    assert place(path) == known


@pytest.mark.parametrize(
    "path",
    [
        "",
        "relative",
        "/..",
        "/../system.slice/openclaw.service",
        "/../../a",
        "/a/../system.slice/openclaw.service",
        "/a/./b",
        "//system.slice",
        "/system.slice/",
        "/a\nb",
        "/a\x1b[31m",
        "/a\udcff",
        "/a\u202eb",
        "/system.slice/openclaw.service\n",
    ],
)
def test_a_path_from_another_namespace_or_that_cannot_be_shown_is_unknown(path: str) -> None:
    assert locate(7, path) is None


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/", "/"),
        ("/payload/x", "/payload/x"),
        ("/system.slice", "/system.slice"),
        ("/system.slice/a.service", "/system.slice/a.service"),
        ("/system.slice/a.service/b/c.service", "/system.slice/a.service"),
        ("/system.slice/_cpu.service/x", "/system.slice/_cpu.service"),
        (USER, USER),
        (f"{USER}/app.slice", USER),
        (f"{USER}/app.slice/x", USER),
        (f"{USER}/app.slice/tui.scope", f"{USER}/app.slice/tui.scope"),
        (f"{USER}/app.slice/tui.scope/b/c.scope", f"{USER}/app.slice/tui.scope"),
        (f"{USER}/init.scope", f"{USER}/init.scope"),
        (f"/docker/{HEX}/x", f"/docker/{HEX}/x"),
    ],
)
def test_the_innermost_units_own_cgroup(path: str, unit: str) -> None:
    located = locate(7, path)
    assert located is not None
    assert located[1] == unit


def test_the_name_of_a_users_unit_has_its_managers_before_it() -> None:
    located = locate(7, f"{USER}/app.slice/openclaw.service")
    assert located is not None
    assert located[0].unit_name == "user@1000.service/openclaw.service"
    assert Cgroup(1, "/").unit_name is None
