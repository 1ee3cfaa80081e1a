"""`gatepass openclaw setup` and `check` on the real thing: what setup wrote is what everything runs on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.openclaw_config import USER
from e2e.openclaw_install import OpenClawInstall
from e2e.person import Person
from e2e.stack import CHECKOUT, GatepassInstall
from gatepass.openclaw_setup.json5 import parse

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def running(gatepass_install: GatepassInstall, openclaw_install: OpenClawInstall) -> Iterator[Person]:
    """A person who did what setup said, to the letter."""
    with Person(gatepass_install, openclaw_install) as person:
        commands = [step["command"] for step in person.setup()["steps"]]
        person.start("broker", next(command for command in commands if "gatepass-broker" in command))
        person.start("proxy", next(command for command in commands if "gatepass-gateway" in command))
        assert f"openclaw gateway run --port {person.second_port}" in commands
        person.openclaw.start()
        yield person


@pytest.fixture
def person(gatepass_install: GatepassInstall, openclaw_install: OpenClawInstall) -> Iterator[Person]:
    """A person who runs nothing yet."""
    with Person(gatepass_install, openclaw_install) as fresh:
        yield fresh


def test_openclaws_commands_are_in_on_what_setup_wrote(running: Person) -> None:
    offset = len(running.openclaw.log_text())
    listed = running.openclaw.cli("cron", "list", env=running.environment())
    assert listed.returncode == 0, listed.stdout + listed.stderr
    running.openclaw.wait_for_log(f"authenticated user connected .*user={USER}", 5, offset)
    job = ("--name", "made", "--every", "1h", "--system-event", "x", "--session", "main")
    added = running.openclaw.cli("cron", "add", *job, env=running.environment())
    assert added.returncode == 0, added.stdout + added.stderr


def test_check_says_that_all_is_well(running: Person) -> None:
    assert running.findings(0) == []
    assert "all is well" in running.run("check").stdout


def test_running_setup_again_touches_no_file(running: Person) -> None:
    before = running.files()
    assert len(before) == 5  # the configuration, its backup, the launcher, the notes, the proxy's configuration
    again = running.run("setup", "--write")
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("nothing to change")
    assert running.files() == before


def test_a_broker_and_a_proxy_that_do_not_run_are_found_with_the_command_that_starts_them(running: Person) -> None:
    running.daemons["proxy"].stop()
    running.daemons["broker"].stop()
    try:
        broker, proxy = running.findings(5)
        assert "no broker is running" in broker["problem"]
        assert f"gatepass-broker --loopback-user {USER}" in broker["cure"]
        assert "the gatepass proxy is not running" in proxy["problem"]
        assert "gatepass-gateway --config" in proxy["cure"]
    finally:
        running.daemons["broker"].start()
        running.daemons["proxy"].start()


def test_showing_changes_nothing_and_tells_no_secret(person: Person) -> None:
    before = person.files()
    shown = person.run("setup", "--loopback-user", USER)
    assert shown.returncode == 0, shown.stderr
    assert '- gateway.auth.mode: "token"' in shown.stdout
    assert '+ gateway.auth.mode: "trusted-proxy"' in shown.stdout
    assert "OLD_TOKEN" not in shown.stdout
    assert person.files() == before


def test_comments_stay_and_undo_restores_every_byte(person: Person) -> None:
    original = person.config.read_bytes()
    person.setup()
    written = person.config.read_text()
    assert written != original.decode()
    for comment in ("// my gateway", "// dialled by everything here", "/* quiet */"):
        assert comment in written
    undone = person.run("setup", "--undo")
    assert undone.returncode == 0, undone.stderr
    assert person.config.read_bytes() == original
    assert set(person.files()) == {person.config}


def configuration(person: Person) -> Any:
    """What OpenClaw's configuration says."""
    return parse(person.config.read_text()).value


def test_undo_keeps_what_openclaw_wrote_since(person: Person) -> None:
    """OpenClaw writes its whole file anew, without comments, whenever a person has it change a value."""
    before = configuration(person)["gateway"]
    person.setup()
    for key, value in (("gateway.reload.mode", '"hybrid"'), ("gateway.trustedProxies", '["127.7.7.7", "192.0.2.1"]')):
        changed = person.openclaw.cli("config", "set", key, value, "--strict-json")
        assert changed.returncode == 0, changed.stderr
    undone = person.run("setup", "--undo")
    assert undone.returncode == 0, undone.stderr
    after = configuration(person)
    assert after["gateway"] == {**before, "reload": {"mode": "hybrid"}, "trustedProxies": ["192.0.2.1"]}
    assert "secrets" not in after
    assert person.openclaw.cli("config", "validate").returncode == 0


def test_undo_loses_no_later_change_unasked(person: Person) -> None:
    original = person.config.read_bytes()
    person.setup()
    changed = person.openclaw.cli("config", "set", "gateway.auth.trustedProxy.userHeader", "x-mine")
    assert changed.returncode == 0, changed.stderr
    later = person.config.read_bytes()
    refused = person.run("setup", "--undo")
    assert refused.returncode == 6
    assert "gateway.auth.trustedProxy.userHeader was changed after setup" in refused.stderr
    assert person.config.read_bytes() == later
    assert person.run("setup", "--undo", "--discard-changes").returncode == 0
    assert person.config.read_bytes() == original


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("port:", "port", "6:10: this is not JSON5: a ':' is missing here"),
        ("bind:", "bund:", 'OpenClaw does not take this as it is: gateway: Unrecognized key: "bund"'),
        ('mode: "local"', 'mode: "remote"', "4:11: gateway.mode is not 'local'"),
        ("gateway: {", 'gateway: { $include: "./gateway.json",', "an $include at 'gateway'"),
    ],
    ids=["broken", "unknown key", "client only", "included"],
)
def test_a_broken_or_foreign_configuration_is_left_with_an_error_that_says_where(
    person: Person, old: str, new: str, complaint: str
) -> None:
    person.openclaw.write_file(person.config.name, person.config.read_text().replace(old, new))
    person.openclaw.write_file("gateway.json", "{}")
    before = person.files()
    refused = person.run("setup", "--write", "--loopback-user", USER)
    assert refused.returncode == 6, refused.stdout
    assert refused.stdout == ""
    assert str(person.config) in refused.stderr
    assert complaint in refused.stderr.replace(f"{person.port}", "PORT")
    assert person.files() == before


@pytest.mark.root
def test_every_mistake_in_the_files_is_found_with_its_cure_and_setup_repairs_them_all(person: Person) -> None:
    person.setup()
    good = person.config.read_text()
    spoilt = good
    for old, new in (
        ('mode: "trusted-proxy"', 'mode: "token", token: "x"'),
        ('"127.7.7.7"', '"127.7.7.7", "127.0.0.1", "::1"'),
        ('"allowLoopback": true', '"allowLoopback": false'),
        (f'"{USER}": [', '"somebody@example.com": ['),
        ('"OPENCLAW_GATEWAY_PORT"', '"PATH"'),
    ):
        assert old in spoilt
        spoilt = spoilt.replace(old, new)
    person.openclaw.write_file(person.config.name, spoilt)
    launcher = person.home / "state" / "gatepass-secret"
    os.chown(launcher, 0, 0)

    found = person.findings(6)
    problems = "\n".join(finding["problem"] for finding in found)
    for problem in (
        'gateway.auth.mode is "token", and has to be "trusted-proxy"',
        "gateway.auth.token is set, and must not be",
        'gateway.trustedProxies is ["127.7.7.7", "127.0.0.1", "::1"]',
        "gateway.auth.trustedProxy.allowLoopback is false, and has to be true",
        f'gateway.auth.identityScopes["{USER}"] is missing',
        "secrets.providers.gatepass.passEnv is",
        "the launcher belongs to root",
    ):
        assert problem in problems
    assert all(finding["cure"] for finding in found)

    repaired = person.run("setup", "--write")
    assert repaired.returncode == 0, repaired.stderr
    assert {finding["code"] for finding in person.findings(5)} == {"broker", "proxy_port", "openclaw_port"}


def test_the_steps_in_the_readme_are_those_of_setup(person: Person) -> None:
    readme = (CHECKOUT / "README.md").read_text()
    block = readme.split("<!-- the steps of setup -->")[1].split("```")[1].strip()
    said = "\n".join(step["command"] for step in person.setup()["steps"])
    here = {
        f"{person.gatepass.bin}/": "",
        f"{person.home}/.config": "~/.config",
        str(person.second_port): "18790",
    }
    for specific, general in here.items():
        said = said.replace(specific, general)
    assert said == block
