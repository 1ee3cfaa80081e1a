"""The units themselves: systemd reads every line of them, and what they forbid is forbidden."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.machine import Machine, needs_machine
from e2e.service_host import PYTHON, broker_host
from e2e.stack import CHECKOUT

pytestmark = [*needs_machine, pytest.mark.timeout(300, method="signal")]

UNITS = sorted((CHECKOUT / "systemd").glob("gatepass-*"))
USER_UNITS = sorted((CHECKOUT / "systemd" / "user").glob("gatepass-*"))
SERVICES = ("gatepass-broker", "gatepass-gateway", "gatepass-redirect")
PROBE = Path(__file__).with_name("in_machine") / "probe_sandbox.py"

OF_A_SERVICE = ("ExecStart=", "ExecReload=", "Sockets=", "Requires=", "Type=", "Restart", "WatchdogSec=", "Also=")
"""What makes a unit this service; the rest is the sandbox."""

ALLOWED = {
    # What tells a caller's cgroup shows the names of processes too, and of nothing that is theirs.
    "gatepass-broker": {
        *("write its state", "write its runtime directory"),
        *("hold another process", "read another's cgroup", "see other processes"),
    },
    "gatepass-gateway": {
        *("internet socket", "netlink socket", "write its runtime directory"),
        "hold another process",
    },
    "gatepass-redirect": {"netlink socket", "hold another process"},
}


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with broker_host(request.param) as machine:
        for unit in UNITS:  # also those that an installation without OpenClaw leaves out
            machine.write(f"/usr/local/lib/systemd/system/{unit.name}", unit.read_text())
        machine.systemctl("daemon-reload")
        machine.add_user("person", linger=True)
        for unit in USER_UNITS:
            machine.write(f"/home/person/.config/systemd/user/{unit.name}", unit.read_text())
        machine.write("/home/person/.config/gatepass/broker.env", "GATEPASS_LOOPBACK_USER=person@example.com\n")
        machine.run("chown", "-R", "person:", "/home/person")
        machine.shell("mkdir -p ~/.local/bin && ln -s /opt/gatepass/current/bin/* ~/.local/bin/", user="person")
        machine.systemctl("daemon-reload", user="person")
        yield machine


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_nothing_to_complain_about(machine: Machine, unit: Path) -> None:
    command = ("systemd-analyze", "verify", "--man=no", "--recursive-errors=yes")
    done = machine.run(*command, f"/usr/local/lib/systemd/system/{unit.name}")
    assert done.stdout + done.stderr == ""


def test_an_early_service_that_waits_for_the_network_makes_no_cycle_with_ours(machine: Machine) -> None:
    """As cloud-init has it on Debian's cloud images. systemd breaks a cycle by leaving out some unit, silently."""
    early = (
        "[Unit]\nDefaultDependencies=no\nWants=network-pre.target\nAfter=network-pre.target\nBefore=sysinit.target\n"
    )
    early += "[Service]\nType=oneshot\nExecStart=/bin/true\n[Install]\nWantedBy=sysinit.target\n"
    machine.write("/etc/systemd/system/early.service", early)
    machine.systemctl("enable", "early.service", "gatepass-redirect.service")
    try:
        done = machine.run("systemd-analyze", "verify", "--man=no", "default.target", "early.service", check=False)
        assert "cycle" not in done.stdout + done.stderr
    finally:
        machine.systemctl("disable", "early.service", "gatepass-redirect.service")


@pytest.mark.parametrize("unit", USER_UNITS, ids=lambda unit: unit.name)
def test_a_persons_manager_finds_nothing_to_complain_about(machine: Machine, unit: Path) -> None:
    command = ("systemd-analyze", "--user", "verify", "--man=no", "--recursive-errors=yes")
    done = machine.run(*command, f"/home/person/.config/systemd/user/{unit.name}", user="person")
    assert done.stdout + done.stderr == ""


def test_a_persons_own_broker_is_started_by_the_first_connection(machine: Machine) -> None:
    machine.systemctl("enable", "--now", "gatepass-broker.socket", user="person")
    said = machine.run("gatepass", "whoami", "--json", user="person").stdout
    assert json.loads(said)["grant"]["identity"] == "person@example.com"
    token = machine.run("gatepass", "token", user="person").stdout
    pid = machine.property("gatepass-broker.service", "MainPID", user="person")
    machine.systemctl("restart", "gatepass-broker.service", user="person")
    assert machine.property("gatepass-broker.service", "MainPID", user="person") != pid
    assert machine.run("gatepass", "verify", stdin=token, user="person").returncode == 0


@pytest.mark.parametrize("service", SERVICES)
def test_the_exposure_is_what_the_docs_say(machine: Machine, service: str) -> None:
    said = machine.run("systemd-analyze", "security", "--no-pager", f"{service}.service").stdout
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found, said
    figures = (CHECKOUT / "docs" / "systemd.md").read_text()
    stated = re.search(rf"\| `{service}\.service` \| ([\d.]+) \|", figures)
    assert stated, f"docs/systemd.md has no figure for {service}"
    assert found[1] == stated[1]


@pytest.mark.parametrize("service", SERVICES)
def test_another_command_in_the_same_sandbox_finds_next_to_nothing(machine: Machine, service: str) -> None:
    machine.write("/srv/probe_sandbox.py", PROBE.read_text())
    shipped = (CHECKOUT / "systemd" / f"{service}.service").read_text().splitlines()
    sandbox = [line for line in shipped if not line.startswith(OF_A_SERVICE)]
    probe = ["[Service]", "Type=oneshot", f"ExecStart={PYTHON} /srv/probe_sandbox.py"]
    machine.write("/run/systemd/system/probe.service", "\n".join([*sandbox, *probe]))
    machine.systemctl("daemon-reload")
    machine.run("systemctl", "start", "probe.service")
    (said,) = re.findall(r"\{.*\}", machine.journal("probe.service"))[-1:]
    succeeded = {what for what, error in json.loads(said).items() if error is None}
    assert succeeded == ALLOWED[service]
