"""`gatepass openclaw setup` and `check` as commands, with a stand-in for OpenClaw's; tests/e2e has the real one."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from gatepass.openclaw_setup.listeners import listener_on
from support.client import cli_command

USER = "derek@example.com"
FRESH = '{\n  // mine\n  gateway: { mode: "local", port: 9 }\n}\n'

STAND_IN = """\
#!/bin/sh
case "$1 $2" in
  "--version ") echo "OpenClaw ${FAKE_VERSION:-2026.9.6} (0123456)" ;;
  "config file") printf '{"path": "%s"}' "$OPENCLAW_CONFIG_PATH" ;;
  "config schema") printf '{"properties": {"gateway": {"properties": {"auth": {"properties": {"identityScopes":
    {"additionalProperties": {"items": {"enum": ["operator.admin", "operator.read"]}}}}}}}}}' ;;
  "config validate")
    if grep -q "${FAKE_DISLIKE:-no such text}" "$OPENCLAW_CONFIG_PATH"; then
      printf '{"valid": false, "issues": [{"path": "gateway", "message": "not like this"}]}'
    else
      printf '{"valid": true}'
    fi ;;
esac
"""


class Home:
    """A person's home with an OpenClaw in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "openclaw.json"
        self.launcher = directory / "state" / "gatepass-secret"
        self.notes = directory / "state" / "gatepass-setup.json"
        self.proxy_file = directory / "gatepass" / "gateway.toml"
        self.config.write_text(FRESH)
        self.config.chmod(0o640)
        self.openclaw = directory / "openclaw"
        self.openclaw.write_text(STAND_IN)
        self.openclaw.chmod(0o755)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `gatepass openclaw ARGUMENTS`."""
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.directory),
            "XDG_CONFIG_HOME": str(self.directory),
            "XDG_RUNTIME_DIR": str(self.directory),
            "OPENCLAW_STATE_DIR": str(self.directory / "state"),
            "OPENCLAW_CONFIG_PATH": str(self.config),
            **variables,
        }
        command = [*cli_command("openclaw", arguments[0]), "--openclaw", str(self.openclaw), *arguments[1:]]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)

    def write(self, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run setup --write."""
        return self.run("setup", "--write", "--loopback-user", USER, *options, **variables)

    def files(self) -> dict[str, bytes]:
        """Return every file below."""
        return {str(path): path.read_bytes() for path in self.directory.rglob("*") if path.is_file()}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_setup_writes_files_for_their_owner_alone(home: Home) -> None:
    done = home.write()
    assert done.returncode == 0, done.stderr
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.directory.rglob("*") if path.is_file()}
    assert modes == {
        "openclaw": 0o755,
        "openclaw.json": 0o600,
        "openclaw.json.before-gatepass": 0o600,
        "gatepass-secret": 0o700,
        "gatepass-setup.json": 0o600,
        "gateway.toml": 0o600,
    }
    assert "// mine" in home.config.read_text()


def test_undo_restores_content_and_mode(home: Home) -> None:
    before = home.files()
    home.write()
    undone = home.run("setup", "--undo")
    assert undone.returncode == 0, undone.stderr
    assert home.files() == before
    assert stat.S_IMODE(home.config.stat().st_mode) == 0o640
    assert not home.proxy_file.parent.exists()
    assert "there is nothing to undo" in home.run("setup", "--undo").stderr


def test_who_the_local_programs_are_and_how_is_what_was_said_last(home: Home) -> None:
    """Both configurations keep whoever was said before, so nothing but the record tells; check goes by that."""
    for user in (USER, "other@example.com", USER):
        home.run("setup", "--write", "--loopback-user", user, "--way", "redirect", "--second-port", "789")
        record = json.loads((home.directory / "state" / "gatepass-setup.json").read_text())
        assert (record["user"], record["way"]) == (user, "redirect")
    home.config.write_text(home.config.read_text().replace("port: 9", "port: 99"))
    problems = [found["problem"] for found in json.loads(home.run("check", "--json").stdout)["findings"]]
    assert "upstream.port is 9, and has to be 99 to agree with OpenClaw" in problems
    assert not any("listen.port" in problem for problem in problems)


def test_undo_leaves_what_somebody_else_changed(home: Home) -> None:
    home.write()
    home.proxy_file.write_text(home.proxy_file.read_text() + "\n[limits]\nwaiting = 9\n")
    undone = home.run("setup", "--undo")
    assert undone.returncode == 0, undone.stderr
    assert f"{home.proxy_file} stays, because it was changed after setup" in undone.stdout
    assert home.proxy_file.exists()


@pytest.mark.parametrize("setups", [(), ("operator.read",)], ids=["after one setup", "between two"])
def test_undo_keeps_what_was_changed_since(home: Home, setups: tuple[str, ...]) -> None:
    home.write()
    changed = home.config.read_text().replace("// mine", "// mine, and more").replace("port: 9", "port: 9, bind: 'lan'")
    home.config.write_text(changed)
    for scope in setups:
        assert home.write("--scope", scope).returncode == 0
    undone = home.run("setup", "--undo")
    assert undone.returncode == 0, undone.stderr
    assert f"{home.config} is without what setup wrote, and has what was changed later" in undone.stdout
    expected = FRESH.replace("// mine", "// mine, and more").replace("port: 9", "port: 9, bind: 'lan'")
    assert home.config.read_text() == expected
    assert set(home.files()) == {str(home.config), str(home.openclaw)}


def test_undo_loses_nothing_where_setup_and_somebody_else_changed_the_same(home: Home) -> None:
    home.write()
    before_undo = home.config.read_text().replace('"allowLoopback": true', '"allowLoopback": false').encode()
    home.config.write_bytes(before_undo)
    refused = home.run("setup", "--undo")
    assert refused.returncode == 6
    assert f"{home.config}: gateway.auth.trustedProxy.allowLoopback was changed after setup" in refused.stderr
    assert "--discard-changes" in refused.stderr
    assert home.config.read_bytes() == before_undo
    assert home.launcher.exists()
    assert home.run("setup", "--undo", "--discard-changes").returncode == 0
    assert home.config.read_text() == FRESH


def test_undo_leaves_no_configuration_that_openclaw_would_not_take(home: Home) -> None:
    home.write()
    home.config.write_text(home.config.read_text().replace("// mine", "// odd"))
    before = home.files()
    refused = home.run("setup", "--undo", FAKE_DISLIKE="odd")
    assert refused.returncode == 6
    assert "OpenClaw would not take the changed configuration" in refused.stderr
    assert home.files() == before


def test_notes_of_a_release_that_did_not_note_what_it_wrote_undo_an_unchanged_configuration(home: Home) -> None:
    home.write()
    notes = json.loads(home.notes.read_text())
    del notes["written"]
    home.notes.write_text(json.dumps(notes))
    written = home.config.read_text()
    home.config.write_text(written.replace("// mine", "// mine, and more"))
    refused = home.run("setup", "--undo")
    assert refused.returncode == 6
    assert f"{home.config}: this was changed after setup" in refused.stderr
    home.config.write_text(written)
    assert home.run("setup", "--undo").returncode == 0
    assert home.config.read_text() == FRESH


def test_what_openclaw_would_not_take_is_not_written(home: Home) -> None:
    before = home.files()
    refused = home.write(FAKE_DISLIKE="trusted-proxy")
    assert refused.returncode == 6
    assert "OpenClaw would not take the changed configuration: gateway: not like this" in refused.stderr
    assert home.files() == before


@pytest.mark.parametrize(
    ("variables", "options", "status", "message"),
    [
        ({"FAKE_VERSION": "2026.7.35"}, (), 6, "OpenClaw 2026.7.35 cannot work with gatepass"),
        ({"FAKE_VERSION": "unknown"}, (), 6, "this does not say its version"),
        ({"FAKE_DISLIKE": "mine"}, (), 6, "OpenClaw does not take this as it is: gateway: not like this"),
        ({}, ("--openclaw", "/nowhere/openclaw"), 6, "'/nowhere/openclaw' is not a command here"),
        ({}, ("--scope", "operator.fly"), 6, "this OpenClaw has no scope 'operator.fly'"),
        ({}, ("--reverse-proxy", "nobody-by-this-name"), 6, "there is no user 'nobody-by-this-name'"),
        ({}, ("--reverse-proxy", "root:nginx"), 6, "'nginx' is not the full name of a service"),
        ({}, ("--second-port", "99999"), 2, "must be a number between 1 and 65535"),
        ({}, ("--undo",), 2, "either --write or --undo"),
        ({}, ("--discard-changes",), 2, "--discard-changes goes with --undo"),
        ({}, ("--loopback-user", ""), 2, "say who your local programs shall be"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_touched(
    home: Home, variables: dict[str, str], options: tuple[str, ...], status: int, message: str
) -> None:
    before = home.files()
    refused = home.write(*options, **variables)
    assert refused.returncode == status, refused.stderr
    assert message in refused.stderr
    assert refused.stdout == ""
    assert home.files() == before


def test_a_link_is_refused_because_openclaw_refuses_it(home: Home) -> None:
    real = home.config.rename(home.directory / "real.json")
    home.config.symlink_to(real)
    refused = home.write()
    assert refused.returncode == 6
    assert "this is not a regular file" in refused.stderr


def test_a_second_port_that_is_taken_is_refused_once(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        refused = home.write("--second-port", port)
        assert refused.returncode == 6
        assert f"port {port} is taken" in refused.stderr
    assert home.write("--second-port", port).returncode == 0
    with socket.create_server(("127.0.0.1", int(port))):  # now it is OpenClaw, as far as setup knows
        assert home.write().returncode == 0


@pytest.mark.root
def test_a_configuration_of_another_user_is_refused(home: Home) -> None:
    os.chown(home.config, 1234, 1234)
    refused = home.write()
    assert refused.returncode == 6
    assert "belongs to uid 1234" in refused.stderr
    assert "run this as the user who runs OpenClaw" in refused.stderr


def test_without_a_configuration_openclaw_comes_first(home: Home) -> None:
    home.config.unlink()
    assert "begin with 'openclaw onboard'" in home.write().stderr


def test_check_before_setup_says_so(home: Home) -> None:
    done = home.run("check", "--json")
    assert done.returncode == 6
    (finding,) = json.loads(done.stdout)["findings"]
    assert finding["code"] == "not_set_up"
    assert finding["cure"] == "gatepass openclaw setup --write --loopback-user NAME"


def test_check_refuses_an_old_openclaw_by_name(home: Home) -> None:
    done = home.run("check", FAKE_VERSION="2026.3.31")
    assert done.returncode == 6
    assert "OpenClaw 2026.3.31 cannot work with gatepass" in done.stdout
    assert "cure: upgrade OpenClaw" in done.stdout


def test_check_finds_a_shared_token_wherever_it_is_set(home: Home) -> None:
    home.write()
    (home.directory / "state" / ".env").write_text("export OPENCLAW_GATEWAY_TOKEN=x\n")
    done = home.run("check", "--json", "--timeout", "0.1", OPENCLAW_GATEWAY_TOKEN="x")
    found = [entry["where"] for entry in json.loads(done.stdout)["findings"] if entry["code"] == "token_variable"]
    assert found == ["the environment", str(home.directory / "state" / ".env")]


def test_who_listens_on_a_port_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        listener = listener_on(server.getsockname()[1])
        assert listener is not None
        assert listener.uid == os.geteuid()
        assert "python" in (listener.program or "")
    assert listener_on(1) is None
