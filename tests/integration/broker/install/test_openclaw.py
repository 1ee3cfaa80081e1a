"""Setting OpenClaw up as the account that runs it: root never acts on that account's files itself (root only)."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatepass.errors import ConfigurationError, GatepassError
from gatepass_broker.install.commands import CommandError
from gatepass_broker.install.observe import Account
from gatepass_broker.install.openclaw import OpenClaw, environment, read_as, rehearse, run_as, set_up, undo_setup
from gatepass_broker.install.request import Request

from .conftest import Machine

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

REQUEST = Request(loopback_user="derek@example.com", openclaw_user="derek")

# Not the real one, which takes ten seconds: tests/e2e has that.
STAND_IN = """\
#!/bin/sh
id -u >>"$HOME/who"
case "$1 $2" in
  "--version ") echo "OpenClaw 2026.9.6 (0123456)" ;;
  "config file") printf '{"path": "%s"}' "$HOME/openclaw.json" ;;
  "config schema") printf '{"properties": {"gateway": {"properties": {"auth": {"properties": {"identityScopes":
    {"additionalProperties": {"items": {"enum": ["operator.admin", "operator.read"]}}}}}}}}}' ;;
  "config validate") printf '{"valid": true}' ;;
esac
"""
FRESH = '{ gateway: { mode: "local", port: 18789 } } // mine\n'


@pytest.fixture
def openclaw(nobody: int) -> Iterator[OpenClaw]:
    with tempfile.TemporaryDirectory(prefix="gatepass-home-") as name:
        home = Path(name)
        for path, text, mode in (("openclaw.json", FRESH, 0o600), ("openclaw", STAND_IN, 0o755)):
            (home / path).write_text(text)
            (home / path).chmod(mode)
            os.chown(home / path, nobody, nobody)
        os.chown(home, nobody, nobody)
        account = Account("derek", nobody, nobody, name)
        variables = environment(REQUEST, account, {})
        yield OpenClaw(account, "openclaw.service", "system", variables, str(home / "openclaw"))


def home_of(openclaw: OpenClaw) -> Path:
    return Path(openclaw.account.home)


def test_everything_is_done_and_owned_by_the_account(machine: Machine, openclaw: OpenClaw) -> None:
    done = set_up(machine.layout, openclaw, REQUEST)
    assert "[identity.users]" in done.proxy_text
    assert "port = 789" in done.proxy_text
    home, uid = home_of(openclaw), openclaw.account.uid
    assert {path.lstat().st_uid for path in home.rglob("*")} == {uid}
    assert set((home / "who").read_text().split()) == {str(uid)}


def test_the_launcher_outlives_an_upgrade(machine: Machine, openclaw: OpenClaw) -> None:
    set_up(machine.layout, openclaw, REQUEST)
    launcher = (home_of(openclaw) / "gatepass-secret").read_text()
    assert f"exec {machine.layout.current}/bin/gatepass openclaw secret --socket /run/gatepass/broker.sock" in launcher
    assert machine.release.name not in launcher


def test_a_rehearsal_changes_nothing(machine: Machine, openclaw: OpenClaw) -> None:
    rehearse(machine.release, openclaw, REQUEST)
    assert (home_of(openclaw) / "openclaw.json").read_text() == FRESH
    assert not (home_of(openclaw) / "gatepass-secret").exists()


def test_undoing_restores_every_byte_and_can_be_repeated(machine: Machine, openclaw: OpenClaw) -> None:
    set_up(machine.layout, openclaw, REQUEST)
    assert (home_of(openclaw) / "openclaw.json").read_text() != FRESH
    for _ in range(2):
        undo_setup(machine.layout, openclaw, discard_changes=False)
        assert (home_of(openclaw) / "openclaw.json").read_text() == FRESH


def test_undoing_does_not_lose_a_later_change_unasked(machine: Machine, openclaw: OpenClaw) -> None:
    set_up(machine.layout, openclaw, REQUEST)
    config = home_of(openclaw) / "openclaw.json"
    config.write_text(config.read_text().replace('"trusted-proxy"', '"none"') + "// later\n")
    with pytest.raises(ConfigurationError, match=r"OpenClaw of derek: .*gateway\.auth\.mode was changed after setup"):
        undo_setup(machine.layout, openclaw, discard_changes=False)
    config.write_text(config.read_text().replace('"none"', '"trusted-proxy"'))
    undo_setup(machine.layout, openclaw, discard_changes=False)
    assert config.read_text() == FRESH + "// later\n"


def test_undoing_can_discard_later_changes(machine: Machine, openclaw: OpenClaw) -> None:
    set_up(machine.layout, openclaw, REQUEST)
    config = home_of(openclaw) / "openclaw.json"
    config.write_text("{} // later")
    undo_setup(machine.layout, openclaw, discard_changes=True)
    assert config.read_text() == FRESH


def test_why_it_cannot_be_set_up_is_said(machine: Machine, openclaw: OpenClaw) -> None:
    (home_of(openclaw) / "openclaw.json").write_text("{")
    for attempt in (
        lambda: rehearse(machine.release, openclaw, REQUEST),
        lambda: set_up(machine.layout, openclaw, REQUEST),
    ):
        with pytest.raises(ConfigurationError, match=r"OpenClaw of derek: .*openclaw\.json"):
            attempt()


def test_a_link_leads_root_nowhere(machine: Machine, openclaw: OpenClaw, tmp_path: Path) -> None:
    secret = tmp_path / "shadow"
    secret.write_text("root:$y$secret")
    proxy_file = home_of(openclaw) / ".config" / "gatepass" / "gateway.toml"
    proxy_file.parent.mkdir(parents=True)
    proxy_file.symlink_to(secret)
    for attempt in (
        lambda: set_up(machine.layout, openclaw, REQUEST),
        lambda: read_as(machine.layout, openclaw, str(proxy_file)),
    ):
        with pytest.raises(GatepassError, match=r"gateway\.toml") as refused:
            attempt()
        assert "secret" not in refused.value.message
    assert secret.read_text() == "root:$y$secret"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"notes": [], "changes": [], "steps": [1]}',
        '{"notes": [], "changes": [], "steps": [{"command": 1}]}',
        '{"notes": [], "changes": [], "steps": [{"command": "x --config"}]}',
        '{"notes": 1, "changes": [], "steps": [{"command": "x --config /"}]}',
    ],
)
def test_an_answer_of_any_other_form_is_an_error_like_any_other(
    machine: Machine, openclaw: OpenClaw, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its account can write into a process of its own, and has one say what it likes."""
    done = subprocess.CompletedProcess((), 0, stdout=answer, stderr="")
    monkeypatch.setattr("gatepass_broker.install.openclaw.run_as", lambda *_, **__: done)
    with pytest.raises(CommandError, match="answered what it should not"):
        set_up(machine.layout, openclaw, REQUEST)


def test_an_account_cannot_hold_root_up_for_ever(openclaw: OpenClaw) -> None:
    """Not by a command that does not end, nor by one that leaves somebody behind who holds its output open."""
    for line in ("sleep 60", "sleep 60 & exit 0"):
        with pytest.raises(CommandError, match="took more than 1 s"):
            run_as(openclaw, "sh", "-c", line, timeout=1)
