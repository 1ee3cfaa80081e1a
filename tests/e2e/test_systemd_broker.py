"""The broker under a real systemd: activation, who may ask, restarts and crashes under load, watchdog, sandbox."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.machine import Machine, needs_machine
from e2e.service_host import PYTHON, broker_host, can_hang, cannot_hang, hang, in_python

pytestmark = [*needs_machine, pytest.mark.timeout(300, method="signal")]

BROKER = "gatepass-broker.service"
CLIENTS_EACH = 50
USERS = ("derek", "one", "two", "three")
MANAGER_STARTS_ANEW = 4
"""The round in which systemd itself is executed again, with the keys that it keeps."""
LOOP = Path(__file__).with_name("in_machine") / "ask_in_a_loop.py"


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with broker_host(request.param) as machine:
        yield machine


@pytest.fixture(autouse=True)
def broker_runs(machine: Machine) -> None:
    machine.systemctl("start", BROKER)


def test_the_first_connection_starts_the_broker(machine: Machine) -> None:
    machine.systemctl("stop", BROKER)
    assert machine.property(BROKER, "ActiveState") == "inactive"
    assert machine.run("gatepass", "token", user="derek").stdout.count(".") == 2
    assert machine.property(BROKER, "ActiveState") == "active"


def test_who_is_not_in_the_group_gets_no_token_and_is_told_which_group(machine: Machine) -> None:
    refused = machine.run("gatepass", "token", user="mallory", check=False)
    assert refused.returncode == 5
    assert "usermod -aG gatepass mallory" in refused.stderr


def test_who_is_in_the_group_and_in_no_rule_is_denied(machine: Machine) -> None:
    machine.add_user("guest", groups=("gatepass",))
    refused = machine.run("gatepass", "token", user="guest", check=False)
    assert refused.returncode == 3, refused.stderr


def test_the_operator_sees_how_the_broker_is(machine: Machine) -> None:
    machine.run("gatepass", "token", user="derek")
    machine.wait_until(lambda: "rules: 1;" in machine.property(BROKER, "StatusText"), timeout=10)
    before = machine.property(BROKER, "MainPID")
    machine.systemctl("reload", BROKER)
    assert machine.property(BROKER, "MainPID") == before
    assert machine.property(BROKER, "ActiveState") == "active"


def test_200_clients_are_all_served_through_ten_restarts_and_three_crashes(machine: Machine) -> None:
    for name in USERS[1:]:
        machine.add_user(name, groups=("gatepass",))
    rules = machine.read("/etc/gatepass/broker.toml")
    listed = ", ".join(f'"{name}"' for name in USERS)
    machine.write("/etc/gatepass/broker.toml", rules.replace('user = "derek"', f"user = [{listed}]"))
    machine.systemctl("reload", BROKER)
    machine.write("/srv/ask_in_a_loop.py", LOOP.read_text())
    command = (PYTHON, "/srv/ask_in_a_loop.py", str(CLIENTS_EACH))
    keys = published(machine)
    asking = [machine.popen(*command, user=name) for name in USERS]
    try:
        time.sleep(1)
        for round_ in range(10):
            machine.systemctl("restart", BROKER)
            if round_ == MANAGER_STARTS_ANEW:
                machine.systemctl("daemon-reexec")
            if round_ % 3 == 2:
                time.sleep(0.5)
                machine.run("kill", "-KILL", machine.property(BROKER, "MainPID"))
                time.sleep(1)
        time.sleep(1)
    finally:
        for process in asking:
            process.terminate()
        said = [process.communicate(timeout=60)[0] for process in asking]
    found = [json.loads(text) for text in said]
    assert [entry["faults"] for entry in found] == [[], [], [], []]
    assert all(entry["answers"] > 10 * CLIENTS_EACH for entry in found), found
    assert machine.journal(BROKER).count("code=killed, status=9/KILL") == 3
    # Tokens from before all that still verify: the key is the same, and was never on a disk.
    for token in machine.shell("cat /tmp/tokens-$(id -u)", user="derek").stdout.split():
        assert machine.run("gatepass", "verify", user="derek", stdin=token).returncode == 0
    assert published(machine) == keys


def test_a_broker_that_hangs_is_killed_by_the_watchdog_and_is_back(machine: Machine) -> None:
    """Its loop alone: the process runs, and another thread of it."""
    can_hang(machine, BROKER, "gatepass_broker", "--config", "/etc/gatepass/broker.toml", watchdog_seconds=2)
    machine.systemctl("restart", BROKER)
    token = machine.run("gatepass", "token", user="derek").stdout
    pid = machine.property(BROKER, "MainPID")
    started = time.monotonic()
    hang(machine, BROKER)
    # It has 2 s to give a sign of life, and the next broker serves within a second.
    assert machine.run("gatepass", "token", "--timeout", "10", user="derek").stdout
    assert time.monotonic() - started < 6
    assert machine.property(BROKER, "MainPID") != pid
    assert "watchdog" in machine.journal(BROKER).lower()
    assert machine.run("gatepass", "verify", user="derek", stdin=token).returncode == 0
    cannot_hang(machine, BROKER)


def test_a_wrong_configuration_with_clients_waiting_is_no_restart_loop(machine: Machine) -> None:
    good = machine.read("/etc/gatepass/broker.toml")
    machine.write("/etc/gatepass/broker.toml", "[broker\n")
    machine.systemctl("restart", BROKER, check=False)
    waiting = machine.popen("gatepass", "token", "--timeout", "30", user="derek")
    seen = machine.journal(BROKER).count("this is not TOML")
    time.sleep(6)
    assert machine.journal(BROKER).count("this is not TOML") - seen <= 3
    machine.write("/etc/gatepass/broker.toml", good)
    machine.systemctl("restart", BROKER)
    assert waiting.communicate(timeout=40)[0].count(".") == 2  # it was patient, and was served


def test_a_broker_that_ends_at_once_is_not_given_up(machine: Machine) -> None:
    """Who waits has it started again as fast as it ends, and systemd would close the socket after 20 times in 2 s."""
    machine.write(f"/run/systemd/system/{BROKER}.d/ends.conf", "[Service]\nExecStart=\nExecStart=/bin/sh -c 'exit 2'\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", BROKER, check=False)
    waiting = machine.popen("gatepass", "token", "--timeout", "30", user="derek")
    machine.wait_until(lambda: machine.journal(BROKER).count("status=2/INVALIDARGUMENT") > 25, timeout=20)
    machine.run("rm", f"/run/systemd/system/{BROKER}.d/ends.conf")
    machine.systemctl("daemon-reload")
    assert waiting.communicate(timeout=40)[0].count(".") == 2


def test_keys_from_an_encrypted_credential_survive_a_stop(machine: Machine) -> None:
    """A stop empties the file-descriptor store. What is encrypted for this host is there again."""
    machine.shell(
        "systemd-creds setup && head -c 32 /dev/urandom"
        " | systemd-creds encrypt --with-key=host --name=signing-seed - /etc/gatepass/signing-seed.cred"
    )
    credential = "[Service]\nLoadCredentialEncrypted=signing-seed:/etc/gatepass/signing-seed.cred\n"
    machine.write(f"/run/systemd/system/{BROKER}.d/seed.conf", credential)
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", BROKER)
    before = signing_key(machine)
    machine.systemctl("stop", BROKER)
    machine.systemctl("start", BROKER)
    assert signing_key(machine) == before
    machine.run("rm", f"/run/systemd/system/{BROKER}.d/seed.conf")
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", BROKER)
    assert signing_key(machine) != before


def test_peers_are_seen_as_they_are(machine: Machine) -> None:
    """The sandbox must not turn callers into nobody."""
    for name in ("derek", "root"):
        uid = int(machine.run("id", "-u", name).stdout)
        seen = json.loads(machine.run("gatepass", "whoami", "--json", user=name, check=False).stdout)
        assert seen["uid"] == uid


def test_nothing_of_a_key_is_on_a_disk_or_in_a_log(machine: Machine) -> None:
    token = machine.run("gatepass", "token", user="derek").stdout.strip()
    written = machine.shell(
        f"grep -rlF {token.rsplit('.', 1)[1]} /var/lib/gatepass /var/log /etc/gatepass /run || true"
    )
    assert written.stdout == ""
    assert token not in machine.run("journalctl", "--no-pager").stdout


def published(machine: Machine) -> list[str]:
    return [key["kid"] for key in json.loads(machine.read("/run/gatepass-broker/jwks.json"))["keys"]]


def signing_key(machine: Machine) -> str:
    token = in_python(machine, "from gatepass import Client\nprint(Client().issue().token)", user="derek").stdout
    return str(token.split(".")[0])
