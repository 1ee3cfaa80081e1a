"""docs/access.md shows what the code does: its rules load, its output is the commands' own, its quote is the code's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

from gatepass.cli import explain as explain_command
from gatepass.cli import sessions as sessions_command
from gatepass.clock import Moment
from gatepass.daemon.toml_tables import check_tables
from gatepass.explanation import Explanation, explanation_reply
from gatepass.messages import IssueRequest
from gatepass.oversight import LeftBehindList, SessionList, left_behind_reply, sessions_reply
from gatepass_broker import rule_tables
from gatepass_broker.caller import Caller, Cgroup
from gatepass_broker.explain import explain
from gatepass_broker.judge import Rules
from gatepass_broker.policy import SELECTORS
from gatepass_broker.rule_tables import rules_of
from gatepass_broker.schema import BrokerTable, RulesFile
from gatepass_broker.state import State
from gatepass_gateway.followed_broker import DEFAULT_ABSENCE_SECONDS, FollowedBroker

PAGE: Final = (Path(__file__).parents[2] / "docs" / "access.md").read_text(encoding="utf-8")
USERS: Final = {"derek": 1000, "agent": 1001}
SHELL: Final = Cgroup(
    id=1,
    path="/user.slice/user-1000.slice/session-4.scope",
    unit="session-4.scope",
    slices=("user.slice", "user-1000.slice"),
)
BY_THE_SERVICE: Final = {"identity": "derek@example.com", "uid": 1000, "unit": "openclaw-gateway.service"}


class Answers:
    """A broker that answers as told."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def explain(self, *_: Any, **__: Any) -> Explanation:
        answer: Explanation = self.answers["explain"]
        return answer

    def sessions(self) -> SessionList:
        answer: SessionList = self.answers["sessions"]
        return answer

    def left_behind(self) -> LeftBehindList:
        answer: LeftBehindList = self.answers["left_behind"]
        return answer


@pytest.fixture(autouse=True)
def a_machine_with_these_users(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {uid: name for name, uid in USERS.items()}
    monkeypatch.setattr(rule_tables, "uid_of", lambda name, _: USERS[name])
    for command in (explain_command, sessions_command):
        monkeypatch.setattr(command, "user_name", lambda uid: names[uid])


def shown(command: str) -> str:
    """Return the output that the page shows of a command."""
    (output,) = re.findall(rf"^```console\n\$ (?:sudo )?{command}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(output)


def rules_of_the_page() -> Rules:
    broker = BrokerTable(loopback_user="derek@example.com")
    tables = [tomllib.loads(block) for block in re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)]
    rules = rules_of(tuple(rule for table in tables for rule in check_tables(table, RulesFile).rule), broker)
    return Rules("gatepass:claw", rules, broker.default_ttl, "/etc/gatepass/broker.toml")


def test_every_selector_is_in_the_table() -> None:
    table = re.search(r"^\| selector .*?\n\n", PAGE, re.MULTILINE | re.DOTALL)
    assert table is not None
    cells = re.findall(r"^\| (`.*?) \|", table[0], re.MULTILINE)
    assert {key for cell in cells for key in re.findall("`(.*?)`", cell)} == set(SELECTORS)


def test_the_explanation_is_the_one_that_the_rules_of_the_page_give(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    caller = Caller(1000, 1000, frozenset({990, 1000}), 13664, 5, SHELL, nested=False)
    request = IssueRequest(scope="operator.write")
    reply = explain(rules_of_the_page(), State(), caller, request, exited=False, time=100, as_admin=False)
    monkeypatch.setattr(explain_command, "client_of", lambda _: Answers(explain=explanation_reply(reply)))
    assert explain_command.main(["--scope", "operator.write"]) == 3
    beginning, _, rest = shown("gatepass explain --scope operator.write").partition("  2. …")
    assert rest == "\n"
    assert capfd.readouterr().out.startswith(beginning)


def test_the_lists_are_the_commands_own(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    gateway = "gatepass-gateway on 18789"
    session = {"kind": "websocket", "login": "token", "scope": "", "since": 100, "gateway": gateway}
    sessions = [
        {**session, **BY_THE_SERVICE, "unit": SHELL.unit, "id": "a", "jti": "EH5dMB3qYmovI27k95qyWQ"},
        {**session, **BY_THE_SERVICE, "id": "b", "jti": "T2u59JJzI3YfD2s9YZIl8Q"},
    ]
    sessions[0]["client"], sessions[1]["client"] = "openclaw-tui", "cli"
    followers = [{"name": gateway, "connected_since": 1, "seq": 1, "current": True}]
    device, job = "4f1f7c0ad3d8f5a2", "7d0c5a52-6b58-4b0b-9d3f-0f6e6c0a6c11"
    left = {**BY_THE_SERVICE, "time": 100, "session": "b", "jti": "x"}
    entries = [
        {**left, "kind": "device", "name": device, "removal": f"openclaw devices remove {device}"},
        {**left, "kind": "cron job", "name": job, "removal": f"openclaw cron rm {job}"},
    ]
    answers = Answers(
        sessions=sessions_reply({"gateways": followers, "sessions": sessions}),
        left_behind=left_behind_reply({"left_behind": entries}),
    )
    monkeypatch.setattr(sessions_command, "admin_client_of", lambda _: answers)
    monkeypatch.setattr(sessions_command, "moment", lambda _: "2026-11-23 23:21:41")
    for arguments in ([], ["--left-behind"]):
        assert sessions_command.main(arguments) == 0
        output = shown(" ".join(["gatepass sessions", *arguments]))
        assert capfd.readouterr().out.startswith(output)


def test_the_status_of_a_proxy_without_its_broker_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    follower = FollowedBroker("/nowhere", clock=lambda: Moment(time=0, boottime=112, boot_id="x"))
    monkeypatch.setattr(follower, "_gone_since", 100)
    assert follower.complaint is not None
    assert f"\n{follower.complaint}\n" in PAGE
    assert DEFAULT_ABSENCE_SECONDS == 3_600
    assert "(an hour unless configured)" in PAGE
