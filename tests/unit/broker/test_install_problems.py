"""What stands against an installation is found before anything is changed."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from gatepass.openclaw_setup.facts import Listener
from gatepass_broker.install import observe
from gatepass_broker.install import problems as module
from gatepass_broker.install.layout import Layout
from gatepass_broker.install.manifest import Manifest, digest
from gatepass_broker.install.observe import Account
from gatepass_broker.install.openclaw import OpenClaw
from gatepass_broker.install.problems import Intention, account_problems, problems
from gatepass_broker.install.release import Blueprint
from gatepass_broker.install.request import Request, ReverseProxy
from gatepass_broker.install.services import UnitState
from gatepass_broker.install.units import WantedFile

REQUEST = Request(loopback_user="derek@example.com", users=("root",))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    for name in ("opt", "etc", "usr/local/bin"):
        (tmp_path / name).mkdir(parents=True)
    return Layout(tmp_path)


def found(layout: Layout, manifest: Manifest | None = None, *, size: int = 0, request: Request = REQUEST) -> list[str]:
    wanted = WantedFile(layout.units / "x.service", b"ours")
    plan = Blueprint("1-a", "1", 1, (), (), size)
    return problems(Intention(layout, request, manifest or Manifest(), plan, None, (wanted,)))


def test_nothing_stands_against_it_on_an_empty_machine(layout: Layout) -> None:
    assert found(layout) == []


def test_a_unit_of_somebody_else_is_not_overwritten_and_ours_is(layout: Layout) -> None:
    layout.units.mkdir(parents=True)
    path = layout.units / "x.service"
    path.write_bytes(b"theirs")
    (problem,) = found(layout)
    assert problem.startswith(f"{path} is there already")
    assert found(layout, Manifest(files={str(path): digest(b"ours, before")})) == []
    path.write_bytes(b"ours")  # of an installation whose record is lost
    assert found(layout) == []
    path.unlink()
    path.symlink_to("/nowhere")
    assert len(found(layout)) == 1


def test_a_command_of_somebody_else_is_not_overwritten_and_ours_is(layout: Layout) -> None:
    path = layout.links / "gatepass"
    path.touch()
    (problem,) = found(layout)
    assert problem.startswith(f"{path} is there already")
    path.unlink()
    path.symlink_to("/somewhere/else")
    assert len(found(layout)) == 1
    path.unlink()
    path.symlink_to(layout.command("gatepass"))
    assert found(layout) == []


def test_a_full_disk_and_a_bad_identity_are_said_together(layout: Layout) -> None:
    first, second = found(layout, size=2**60, request=Request(loopback_user="dérek", users=("root",)))
    assert "MiB free" in first
    assert "broker.loopback_user" in second


def test_a_configuration_that_is_there_is_the_operators(layout: Layout) -> None:
    layout.config.mkdir()
    layout.broker_config.write_text("anything")
    assert found(layout, request=Request(loopback_user="dérek", users=("root",))) == []
    layout.gateway_config.write_text("not = [toml")
    (problem,) = found(layout, request=Request(loopback_user="d", openclaw_user="root"))
    assert "this is not TOML" in problem
    layout.broker_config.unlink()
    layout.broker_config.symlink_to("/etc/passwd")
    assert any("is a symbolic link" in problem for problem in found(layout))


def test_a_directory_that_others_can_write_to_is_no_place_for_services(layout: Layout) -> None:
    (layout.root / "opt").chmod(0o777)
    (problem,) = found(layout)
    assert "chmod go-w" in problem


@pytest.mark.parametrize(
    ("flag", "said"), [(os.ST_RDONLY, "read-only; make it writable: mount -o"), (os.ST_NOEXEC, "is mounted noexec")]
)
def test_a_file_system_that_services_cannot_be_put_on_or_run_from_is_named(
    layout: Layout, flag: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Flags:
        f_flag, f_bavail, f_blocks, f_bfree, f_frsize = flag, 2**40, 2**40, 2**40, 1

    usual = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda path: Flags if Path(path).name == "opt" else usual(path))
    (problem,) = found(layout)
    assert problem.startswith(f"{layout.home}: the file system there is")
    assert said in problem


def with_openclaw(layout: Layout, monkeypatch: pytest.MonkeyPatch, *running: str, **changes: Any) -> list[str]:
    """What stands against it where there are the system's units `running` and an OpenClaw of root's own."""
    manifest = changes.pop("manifest", Manifest())
    has_unit, listener = changes.pop("has_unit", True), changes.pop("listener", None)
    request = Request(loopback_user="d", openclaw_user="root", **changes)
    monkeypatch.setattr(module, "has_library", lambda _: True)
    monkeypatch.setattr(module, "listener_on", lambda _, address: listener if address == "127.0.0.2" else None)
    monkeypatch.setattr(module, "state", lambda unit: UnitState(unit in running, False, unit in running, "", {}))
    openclaw = OpenClaw(Account("root", 0, 0, "/root"), request.unit, "person", {}, None, has_unit)
    return problems(Intention(layout, request, manifest, Blueprint("1-a", "1", 1, (), (), 0), openclaw, ()))


def test_a_port_that_somebody_has_is_not_the_proxys(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_openclaw(layout, monkeypatch) == []
    for listener in (Listener(0, "/bin/something\x1b[2J"), Listener(4242, None)):
        (problem,) = with_openclaw(layout, monkeypatch, listener=listener)
        assert f"port 789, which the proxy is to have, is taken by a program of uid {listener.uid}" in problem
        assert "--port PORT" in problem
        assert "\x1b" not in problem
    own = "gatepass-gateway.socket"
    assert with_openclaw(layout, monkeypatch, own, listener=Listener(0, "/sbin/init")) == []
    assert with_openclaw(layout, monkeypatch, own, listener=Listener(4242, None)) != []


def test_the_unit_of_a_reverse_proxy_has_to_be_there(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    named = (ReverseProxy("root", "ngnix.service"),)
    (problem,) = with_openclaw(layout, monkeypatch, reverse_proxies=named)
    assert "there is no system unit ngnix.service" in problem
    assert "--no-reverse-proxy" in problem
    assert with_openclaw(layout, monkeypatch, "ngnix.service", reverse_proxies=named) == []


def test_an_openclaw_in_a_unit_of_another_name_is_asked_for(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would run unguarded from the next boot on: what is not its unit is not tied to the redirect."""
    (problem,) = with_openclaw(layout, monkeypatch, has_unit=False)
    assert "there is no unit openclaw-gateway.service" in problem
    assert "--openclaw-unit UNIT, or say --person" in problem
    assert with_openclaw(layout, monkeypatch, has_unit=False, manager="person") == []
    upgraded = Manifest(openclaw_set_up=True, request=Request(openclaw_user="root"))
    assert with_openclaw(layout, monkeypatch, has_unit=False, manifest=upgraded) == []
    (problem,) = with_openclaw(layout, monkeypatch, has_unit=False, manifest=upgraded, openclaw_unit="claw.service")
    assert "there is no unit claw.service" in problem, "the one that is tied to the redirect would not be any more"


def test_another_openclaw_than_the_one_that_is_set_up_waits_for_an_undo(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    for earlier in (Request(openclaw_user="daemon"), Request(openclaw_user="root", openclaw_state_dir="/elsewhere")):
        (problem,) = with_openclaw(layout, monkeypatch, manifest=Manifest(openclaw_set_up=True, request=earlier))
        assert f"the OpenClaw of {earlier.openclaw_user}, and this is another one" in problem
        assert with_openclaw(layout, monkeypatch, manifest=Manifest(request=earlier)) == []
    renamed = Manifest(openclaw_set_up=True, request=Request(openclaw_user="nobody-by-this-name"))
    assert with_openclaw(layout, monkeypatch, manifest=renamed) == []


def test_accounts_have_to_be_there_and_have_no_other_part() -> None:
    request = Request(
        openclaw_user="root",
        users=("nobody-by-this-name", "gatepass-gateway"),
        reverse_proxies=(ReverseProxy("root"), ReverseProxy("root", "nginx.service"), ReverseProxy("nor-by-this")),
    )
    text = "\n".join(account_problems(request))
    assert "there is no user 'nobody-by-this-name'" in text
    assert "no program but gatepass's own may run as gatepass-gateway" in text
    assert "there is no user 'nor-by-this'" in text
    assert text.count("root asks for tokens and is the account of a reverse proxy too") == 1


def test_an_interpreter_that_services_cannot_reach_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python3"  # below /tmp, which services have one of their own of
    python.touch(mode=0o755)
    monkeypatch.setattr(sys, "_base_executable", str(python))
    (fault,) = observe.interpreter_faults()
    assert fault.startswith(f"{python}: services cannot run this Python")
    assert "/usr/bin/python3 -m venv DIR" in fault


@pytest.mark.skipif(not os.access("/usr/bin/python3", os.X_OK), reason="there is no Python of the system")
def test_the_interpreter_of_the_system_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_base_executable", "/usr/bin/python3")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: "/usr/lib")
    assert list(observe.interpreter_faults()) == []
