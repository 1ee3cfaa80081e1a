"""A release: a copy of an installation that every user can run and nobody but root can change."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from gatepass_broker.install import release

from .conftest import Installer, Machine, execute

pytestmark = pytest.mark.timeout(240)

COMMANDS = ("gatepass", "gatepass-broker", "gatepass-gateway", "gatepass-redirect")
PACKAGES = ("anyio", "cryptography", "h11", "msgpack", "msgspec", "structlog", "uvloop", "rich")


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_run(machine: Machine, command: str) -> None:
    done = execute(str(machine.layout.command(command)), "--version")
    assert done.stdout.split() == [command, machine.release.name.partition("-")[0]], done.stderr


@pytest.mark.root
@pytest.mark.parametrize("command", COMMANDS)
def test_other_users_can_run_them(machine: Machine, nobody: int, command: str) -> None:
    done = execute(str(machine.layout.command(command)), "--help", user=nobody)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_nothing_else_is_needed(machine: Machine, fresh: Installer) -> None:
    """Everything that is imported lies in the release or in the interpreter's own library."""
    source = f"import json, sys, gatepass_broker.server, gatepass_gateway.server, {', '.join(PACKAGES)}\n"
    source += "print(json.dumps([m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)] + sys.path))"
    done = execute(str(machine.release / "bin" / "python"), "-I", "-c", source)
    assert done.returncode == 0, done.stderr
    places = json.loads(done.stdout)
    assert not [place for place in places if Path(place).is_relative_to(fresh.directory)]
    assert [place for place in places if Path(place).is_relative_to(machine.release)]


def test_nobody_but_its_owner_can_change_it(machine: Machine) -> None:
    for path in (machine.release, *machine.release.rglob("*")):
        status = path.lstat()
        assert status.st_uid == os.geteuid()
        if not path.is_symlink():
            assert not status.st_mode & 0o022, path
            assert status.st_mode & 0o004, path


def test_daemons_stay_with_their_release_and_the_client_with_the_one_in_use(machine: Machine) -> None:
    """What a daemon loads late is of its own release; what setup writes into a launcher outlives an upgrade."""
    first = {name: (machine.release / "bin" / name).read_text().splitlines()[0] for name in COMMANDS}
    assert first.pop("gatepass") == f"#!{machine.layout.current}/bin/python -I"
    assert set(first.values()) == {f"#!{machine.release}/bin/python -I"}
    source = "from gatepass.openclaw_setup.places import own_commands; print(own_commands())"
    done = execute(f"{machine.layout.current}/bin/python", "-I", "-c", source)
    assert done.stdout.strip() == f"{machine.layout.current}/bin"


def test_who_calls_has_no_say_in_what_is_imported(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "msgpack.py").write_text("raise SystemExit('taken over')")
    command = [str(machine.layout.command("gatepass")), "--version"]
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": str(tmp_path / "msgpack.py"), "LC_ALL": "C"}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_units_come_with_the_wheel(machine: Machine) -> None:
    source = "from gatepass_broker.install.units import shipped; print(shipped('gatepass-broker.service').decode())"
    done = execute(str(machine.release / "bin" / "python"), "-I", "-c", source)
    assert "[Service]" in done.stdout, done.stderr


def test_the_same_files_make_the_same_release_also_from_itself(machine: Machine, fresh: Installer) -> None:
    before = (machine.release / release.COMPLETE).stat().st_mtime_ns
    assert fresh.make(machine.layout.root).stdout.strip() == machine.release.name
    assert Installer(machine.release).make(machine.layout.root).stdout.strip() == machine.release.name
    assert (machine.release / release.COMPLETE).stat().st_mtime_ns == before
