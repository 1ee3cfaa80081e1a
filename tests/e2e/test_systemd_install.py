"""`gatepass-broker install`: in one command, twice without a change, upgraded under load, taken off without a trace."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from e2e.callers import bearer, http_request
from e2e.machine import Machine, needs_machine
from e2e.network import network_of, run_in_network
from e2e.openclaw_config import USER
from e2e.openclaw_install import OpenClawInstall
from e2e.openclaw_instance import Account
from e2e.service_host import (
    INSTALLER,
    PORT,
    PYTHON,
    OpenClawService,
    before_setup,
    bring_newer_gatepass,
    broker_host,
    current_release,
    install,
    prepare_installer,
)
from gatepass.paths import ADMIN_SOCKET
from gatepass_broker.install.configuration import ADMIN_TABLE
from gatepass_broker.install.layout import ADMIN_SOCKET_UNIT

pytestmark = [*needs_machine, pytest.mark.timeout(400, method="signal")]

BROKER = "gatepass-broker.service"
CONFIGURATION = "/etc/gatepass/broker.toml"
KEYS = "/run/gatepass-broker/jwks.json"
LOOP = Path(__file__).with_name("in_machine") / "ask_in_a_loop.py"
MALLORY = Account(4242, 4242)

EVERYTHING = (
    "find /etc /opt /usr/local /usr/lib/systemd /var/lib /run/gatepass* /home /root"
    " \\( -path /var/lib/systemd -o -path /etc/.pwd.lock -o -name '*.cache' -o -path '*/.openclaw*' \\) -prune"
    " -o -printf '%p %u %m %l\\n' 2>/dev/null | sort"
    "; { getent passwd; getent group; } | cut -d: -f1,3,4; nft list tables"
)


@pytest.fixture
def machine() -> Iterator[Machine]:
    with broker_host("bookworm") as machine:
        yield machine


def test_a_rehearsal_changes_nothing_and_an_undone_installation_leaves_the_journal_alone() -> None:
    with Machine("bookworm") as machine:
        machine.boot()
        machine.add_user("derek")
        prepare_installer(machine)
        before = everything(machine)
        options = ("--loopback-user", USER, "--user", "derek")

        rehearsed = install(machine, *options, "--dry-run").stdout
        assert "gatepass-broker.socket" in rehearsed
        assert everything(machine) == before

        install(machine, *options)
        machine.run("gatepass", "token", user="derek")
        install(machine, "--undo")
        left = everything(machine) - before
        assert left
        assert all(line.startswith("/var/lib/gatepass") and " root " in line for line in left), left
        assert before <= everything(machine)

        install(machine, "--undo", "--purge")
        assert everything(machine) == before


def test_a_second_run_changes_nothing(machine: Machine) -> None:
    before, pid = everything(machine), machine.property(BROKER, "MainPID")
    said = install(machine).stdout
    assert everything(machine) == before
    assert machine.property(BROKER, "MainPID") == pid, said


def test_an_upgrade_loses_no_client_and_keeps_what_the_operator_changed(machine: Machine) -> None:
    configuration = machine.read("/etc/gatepass/broker.toml") + "\n# mine\n"
    machine.write("/etc/gatepass/broker.toml", configuration)
    release, pid = current_release(machine), machine.property(BROKER, "MainPID")
    machine.write("/srv/ask_in_a_loop.py", LOOP.read_text())
    asking = machine.popen(PYTHON, "/srv/ask_in_a_loop.py", "30", user="derek")
    time.sleep(0.5)
    bring_newer_gatepass(machine)
    install(machine)
    time.sleep(0.5)
    asking.terminate()
    found = json.loads(asking.communicate(timeout=60)[0])
    assert found["faults"] == []
    assert current_release(machine) != release
    assert machine.property(BROKER, "MainPID") != pid
    assert machine.read("/etc/gatepass/broker.toml") == configuration


def test_a_configuration_from_before_the_administrators_socket_gets_it_when_it_names_it(machine: Machine) -> None:
    """It is the operator's, and the broker refuses a socket that its file does not name."""
    assert_only_root_administers(machine)
    fresh, keys = machine.read(CONFIGURATION), machine.read(KEYS)
    earlier = fresh.replace(ADMIN_TABLE, "")
    as_before_the_administrators_socket(machine, earlier)

    said = install(machine).stdout
    assert ADMIN_TABLE in said
    assert machine.read(CONFIGURATION) == earlier
    assert machine.property(ADMIN_SOCKET_UNIT, "ActiveState") == "inactive"
    machine.systemctl("restart", BROKER)
    assert machine.run("gatepass", "token", user="derek").stdout.count(".") == 2

    machine.write(CONFIGURATION, fresh)
    assert ADMIN_TABLE not in install(machine).stdout
    assert_only_root_administers(machine)
    machine.systemctl("restart", ADMIN_SOCKET_UNIT)
    machine.systemctl("restart", BROKER)
    assert_only_root_administers(machine)
    assert "systemctl" not in install(machine).stdout

    machine.write(CONFIGURATION, earlier)
    install(machine)
    assert machine.property(ADMIN_SOCKET_UNIT, "ActiveState") == "inactive"
    machine.systemctl("restart", BROKER)
    assert machine.run("gatepass", "token", user="derek").stdout.count(".") == 2
    assert machine.read(KEYS) == keys  # none of all this was a stop of the broker


def test_what_stands_in_the_way_is_told_at_once_and_nothing_is_changed() -> None:
    with Machine("bookworm") as machine:
        machine.boot()
        prepare_installer(machine)
        machine.write("/usr/local/bin/gatepass", "somebody else's\n")
        before = everything(machine)
        refused = install(machine, "--loopback-user", USER, "--user", "nobody-here", check=False)
        assert refused.returncode == 6
        assert "/usr/local/bin/gatepass" in refused.stderr
        assert "nobody-here" in refused.stderr
        assert everything(machine) == before


def test_an_environment_that_others_can_change_is_not_installed_from() -> None:
    with Machine("bookworm") as machine:
        machine.boot()
        machine.add_user("mallory")
        prepare_installer(machine)
        machine.run("chown", "mallory:", INSTALLER)
        refused = install(machine, "--loopback-user", USER, "--user", "root", "--dry-run", check=False)
        assert refused.returncode == 6
        assert f"{INSTALLER}: it belongs to uid" in refused.stderr


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def persons(request: pytest.FixtureRequest, openclaw_install: OpenClawInstall) -> Iterator[PersonsOpenClaw]:
    with Machine(request.param, openclaw=openclaw_install) as machine:
        machine.boot()
        machine.add_user("derek", linger=True)
        prepare_installer(machine)
        yield PersonsOpenClaw(machine, openclaw_install)


class PersonsOpenClaw(OpenClawService):
    """OpenClaw as most people have it: a unit of their own service manager, written by OpenClaw itself."""

    user = "derek"
    unit = "openclaw-gateway.service"

    def __init__(self, machine: Machine, openclaw: OpenClawInstall) -> None:
        super().__init__(machine, openclaw)
        self.environment = {"PATH": self.environment["PATH"], "LANG": "C.UTF-8", "NO_COLOR": "1"}
        machine.write("/home/derek/.openclaw/openclaw.json", json.dumps(before_setup()), mode=0o600, owner="derek")
        machine.run("chown", "derek:", "/home/derek/.openclaw")
        self.create_command()
        self.cli("gateway", "install", "--force", check=True)

    @property
    def active(self) -> str:
        """The state of the unit."""
        return self.machine.property(self.unit, "ActiveState", user="derek")


def test_an_openclaw_under_a_persons_own_manager_is_guarded_whatever_stops(persons: PersonsOpenClaw) -> None:
    machine = persons.machine
    machine.wait_until(lambda: persons.times_ready() > 0, timeout=90)
    original = machine.read("/home/derek/.openclaw/openclaw.json")
    installed = install(machine, "--loopback-user", USER, "--openclaw-user", "derek")
    uid = machine.account("derek").uid
    assert f"user@{uid}.service" in installed.stdout

    machine.systemctl("restart", f"user@{uid}.service", timeout=60)
    machine.wait_until(lambda: persons.active == "active", timeout=60)
    machine.wait_until(lambda: persons.times_ready() > 1, timeout=90)
    done = persons.cli("cron", "list")
    assert done.returncode == 0, done.stdout + done.stderr

    # Its units cannot depend on the system's, so it goes on; but nobody gets at it.
    machine.systemctl("stop", "gatepass-redirect.service")
    assert persons.active == "active"
    token = machine.run("gatepass", "token", user="derek").stdout.strip()
    request = partial(http_request, PORT, "GET", "/v1/models", [bearer(token)])
    for account in (MALLORY, Account(uid, uid)):
        with pytest.raises(AssertionError, match="ConnectionRefusedError"):
            run_in_network(network_of(machine.pid), account, request)

    # Nor is it started before the redirect is there.
    machine.systemctl("restart", persons.unit, user="derek", check=False)
    assert persons.active != "active"
    machine.systemctl("start", "gatepass-redirect.service")
    machine.systemctl("reset-failed", persons.unit, user="derek", check=False)
    machine.systemctl("restart", persons.unit, user="derek")
    machine.wait_until(lambda: persons.cli("cron", "list").returncode == 0, timeout=90)

    install(machine, "--undo")
    assert machine.read("/home/derek/.openclaw/openclaw.json") == original
    assert "gatepass" not in machine.run("nft", "list", "tables").stdout


def assert_only_root_administers(machine: Machine) -> None:
    """Root is answered on the socket for administrators, and nobody else can connect."""
    command = ("gatepass", "sessions", "--json")
    json.loads(machine.run(*command).stdout)
    for name in ("derek", "gatepass-gateway"):
        refused = machine.run(*command, user=name, check=False)
        assert (refused.returncode, ADMIN_SOCKET in refused.stderr) == (5, True), refused.stderr


def as_before_the_administrators_socket(machine: Machine, configuration: str) -> None:
    """Take away what a release without it did not install."""
    machine.systemctl("disable", ADMIN_SOCKET_UNIT)
    machine.write(CONFIGURATION, configuration)
    machine.systemctl("stop", ADMIN_SOCKET_UNIT)
    machine.shell(f"rm /usr/local/lib/systemd/system/{ADMIN_SOCKET_UNIT} && rmdir /etc/gatepass/conf.d")
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", BROKER)


def everything(machine: Machine) -> set[str]:
    """What there is, with owners and modes: files, accounts, tables of the firewall."""
    return set(machine.shell(EVERYTHING).stdout.splitlines())
