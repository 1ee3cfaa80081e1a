"""What the commands for administrators, and `explain`, send, print and exit with; the broker is a script."""

from __future__ import annotations

import json
import os
import pwd
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gatepass.frames import Message
from support.client import ISSUE_RESULT, Conversation, both_clients, call, recording, run_cli, scripted

ME = pwd.getpwuid(os.geteuid())
SESSION: Message = {
    "id": "s1",
    "kind": "websocket",
    "login": "token",
    "identity": "derek@example.com",
    "uid": ME.pw_uid,
    "unit": "openclaw.service",
    "jti": "AAAAAAAAAAAAAAAAAAAAAA",
    "scope": "operator.read",
    "since": 1_700_000_000,
    "client": "openclaw-tui",
    "gateway": "main",
}
DEVICE: Message = {
    **{name: SESSION[name] for name in ("id", "kind", "scope", "since")},
    "login": "device",
    "client": "",
    "gateway": "main",
}
GATEWAY: Message = {"name": "main", "connected_since": 1_700_000_000, "seq": 4, "current": True}
LEFT: Message = {
    "time": 1_700_000_000,
    "kind": "device",
    "name": "d1",
    "removal": "openclaw devices remove d1",
    "session": "s1",
    "identity": "derek@example.com",
    "uid": ME.pw_uid,
    "unit": "openclaw.service",
}
DONE: Message = {"seq": 9, "gateways": 1, "acted": 1, "waiting": [], "ended": 3}
LATE: Message = {"seq": 9, "gateways": 2, "acted": 1, "waiting": ["slow"], "ended": 1}
DENIED: Message = {
    "caller": {
        "uid": ME.pw_uid,
        "gid": ME.pw_gid,
        "groups": [4, 27],
        "pid": 4242,
        "unit": "session-3.scope",
        "slices": ["user.slice", "user-1000.slice"],
        "cgroup": "/user.slice/user-1000.slice/session-3.scope",
    },
    "rules": [
        {
            "rule": "openclaw",
            "matches": False,
            "skipped": False,
            "failed": {"selector": "unit", "wanted": "openclaw.service", "found": "session-3.scope"},
        },
        {"rule": "ops", "matches": False, "failed": {"selector": "container", "wanted": "abc", "found": None}},
        {"rule": "hidden", "matches": False, "failed": None},
    ],
    "decision": {"allowed": False, "code": "denied", "reason": "no rule matches; ask the administrator for one"},
    "cures": [
        {"kind": "ask", "text": "Ask for less.", "arguments": {"scope": "a b", "ttl": 60, "binding": "unit"}},
        {
            "kind": "rule",
            "text": "Let what runs in this unit in, by a rule of its own.",
            "toml": '[[rule]]\nname = "session"\nunit = "session-3.scope"\n',
            "place": "last",
        },
    ],
}
ALLOWED: Message = {
    **DENIED,
    "rules": [
        {"rule": "derek", "matches": True, "skipped": False, "failed": None},
        {"rule": "all", "matches": False, "skipped": True, "failed": None},
    ],
    "rules_left_out": 5,
    "decision": {
        "allowed": True,
        "rule": "derek",
        "identity": "derek@example.com",
        "audience": "openclaw",
        "scope": "operator.read",
        "ttl": 300,
        "binding": "unit",
    },
    "cures": [],
}


def asked(tmp_path: Path, result: Message, *command: str) -> tuple[Message, int, str, str]:
    """Run a command against a broker that answers `result`: its one request, exit status, stdout and stderr."""
    requests: list[Message] = []
    with scripted(tmp_path / "s", recording(requests, result)):
        done = run_cli(*command, socket=tmp_path / "s")
    assert len(requests) == 1, done.stderr
    return requests[0], done.returncode, done.stdout, done.stderr


REVOKED = (
    "revoked: 3 sessions ended at 1 gateway; whoever has a rule can ask for a new token: remove the rule, or 'gatepass "
    "lock', to keep them out\n"
)
ID_WITH_DASH = "-NBb6wsOxWTY1y48po55Uw"


@pytest.mark.parametrize(
    ("options", "request_", "out"),
    [
        (["revoke", "--jti", "A-_b"], {"op": "revoke", "by": "jti", "value": "A-_b"}, REVOKED),
        (["revoke", "--jti", ID_WITH_DASH], {"op": "revoke", "by": "jti", "value": ID_WITH_DASH}, REVOKED),
        (["revoke", f"--jti={ID_WITH_DASH}"], {"op": "revoke", "by": "jti", "value": ID_WITH_DASH}, REVOKED),
        (["revoke", "--user", ME.pw_name], {"op": "revoke", "by": "uid", "value": str(ME.pw_uid)}, REVOKED),
        (["revoke", "--user", "3987654321"], {"op": "revoke", "by": "uid", "value": "3987654321"}, REVOKED),
        (["revoke", "--unit", "a.service"], {"op": "revoke", "by": "unit", "value": "a.service"}, REVOKED),
        (
            ["revoke", "--unit", "user@1000.service/tui.scope"],
            {"op": "revoke", "by": "unit", "value": "user@1000.service/tui.scope"},
            REVOKED,
        ),
        (["revoke", "--identity", "d@e.org"], {"op": "revoke", "by": "identity", "value": "d@e.org"}, REVOKED),
        (["revoke", "--all"], {"op": "revoke", "by": "all", "value": ""}, REVOKED),
        (
            ["lock"],
            {"op": "lock"},
            "locked: nothing is issued or accepted until 'gatepass unlock'; 3 sessions ended at 1 gateway\n",
        ),
        (["unlock"], {"op": "unlock"}, "unlocked: tokens are issued again, and accepted at 1 gateway\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_cut_off_is_what_was_said(tmp_path: Path, options: list[str], request_: Message, out: str) -> None:
    assert asked(tmp_path, DONE, *options) == (request_, 0, out, "")


@pytest.mark.parametrize("command", [["revoke", "--all"], ["lock"], ["unlock"]], ids=" ".join)
@pytest.mark.parametrize("json_", [(), ("--json",)], ids=["text", "json"])
def test_gateways_that_have_not_confirmed_are_named(tmp_path: Path, command: list[str], json_: Sequence[str]) -> None:
    _, status, out, err = asked(tmp_path, LATE, *command, *json_)
    assert status == 4
    assert err.startswith("gatepass: 1 of 2 gateways did not confirm it in time: 'slow'; ")
    if json_:
        assert json.loads(out) == {**LATE, "recorded": True}


@pytest.mark.parametrize(("answer", "also"), [(DONE, 0), (LATE, 1)], ids=["acted", "late"])
def test_a_lock_that_is_not_on_the_record_is_no_success(tmp_path: Path, answer: Message, also: int) -> None:
    _, status, out, err = asked(tmp_path, {**answer, "recorded": False}, "lock")
    assert status == 4
    assert out.startswith("locked: ")
    assert err.startswith("gatepass: it is in force, but not on the record")
    assert err.count("did not confirm it") == also


@pytest.mark.parametrize("command", [["revoke", "--all"], ["lock"], ["unlock"]], ids=" ".join)
def test_where_no_gateway_is_connected_nobody_believes_that_one_has_acted(tmp_path: Path, command: list[str]) -> None:
    nobody = {"seq": 9, "gateways": 0, "acted": 0, "waiting": [], "ended": 0}
    _, status, out, _ = asked(tmp_path, nobody, *command)
    assert status == 0
    assert "no gateway is connected: each learns of it before anything else when it comes back" in out


@pytest.mark.parametrize(
    ("line", "err"),
    [
        ("revoke", "gatepass: one of the arguments --jti --user --unit --identity --all is required; .*\n"),
        ("revoke --all --user root", "gatepass: argument --user: not allowed with argument --all; .*\n"),
        ("revoke --user no-such-user", "gatepass: there is no user 'no-such-user' on this machine\n"),
        ("revoke --unit openclaw", "gatepass: argument --unit: must be a unit's whole name, which ends in one of .*\n"),
        ("revoke --unit user.slice", "gatepass: argument --unit: must be a unit's whole name, .*\n"),
        ("revoke --identity=", "gatepass: argument --identity: must not be empty, .*\n"),
        ("revoke --jti --json", "gatepass: argument --jti: expected one argument; .*\n"),
        ("revoke --jti=", "gatepass: argument --jti: must not be empty, .*\n"),
        ("explain --as no-such-user", "gatepass: there is no user 'no-such-user' on this machine\n"),
        ("explain --as root --pid 1", "gatepass: argument --pid: not allowed with argument --as; .*\n"),
        ("explain --pid x", "gatepass: argument --pid: invalid int value: 'x'; .*\n"),
        ("explain --bind x", "gatepass: argument --bind: invalid choice: 'x' .*\n"),
        ("token --bind process", "gatepass: a token bound to this process would end with it: .*\n"),
        ("sessions x", "gatepass: unrecognized arguments: x; see 'gatepass sessions --help'\n"),
        ("lock x", "gatepass: unrecognized arguments: x; see 'gatepass lock --help'\n"),
        ("verify eyJhbGci.eyJ.x", "gatepass: unrecognized arguments: ...; see 'gatepass verify --help'\n"),
    ],
)
def test_wrong_use_is_told_before_anybody_is_asked(tmp_path: Path, line: str, err: str) -> None:
    with scripted(tmp_path / "s", lambda talk: talk.answer()) as peer:
        done = run_cli(*line.split(), socket=tmp_path / "s")
    assert (done.returncode, done.stdout, peer.connections) == (2, "", 0)
    assert re.fullmatch(err, done.stderr), done.stderr


@pytest.mark.parametrize("command", ["explain", "sessions", "revoke", "lock", "unlock"])
def test_help_teaches_with_examples(command: str) -> None:
    done = run_cli(command, "--help")
    assert done.returncode == 0
    assert re.search(rf"\nexamples:\n(.*\n)*  (.* && )?(sudo )?gatepass {command}", done.stdout)


@pytest.mark.parametrize("command", [["sessions"], ["sessions", "--left-behind"], ["lock"], ["explain", "--pid", "1"]])
@pytest.mark.parametrize(("code", "status"), [("operation_not_allowed", 3), ("locked", 3), ("unavailable", 4)])
def test_a_refusal_has_its_exit_status(tmp_path: Path, command: list[str], code: str, status: int) -> None:
    def refuse(talk: Conversation) -> None:
        talk.refuse(code, "the reason", retry_after=60)

    with scripted(tmp_path / "s", refuse):
        done = run_cli(*command, socket=tmp_path / "s")
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "gatepass: the reason\n")


def test_sessions_are_a_table(tmp_path: Path) -> None:
    result = {"gateways": [GATEWAY], "sessions": [SESSION, DEVICE], "more": 0}
    request, status, out, err = asked(tmp_path, result, "sessions")
    assert (request, status, err) == ({"op": "sessions"}, 0, "")
    header, first, second, empty, total = out.splitlines()
    assert header.split() == ["since", "user", "identity", "unit", "kind", "by", "client", "gateway", "jti"]
    expected = f"2023-11-14 22:13:20 {ME.pw_name} derek@example.com openclaw.service websocket token openclaw-tui main"
    assert first.split() == [*expected.split(), "AAAAAAAAAAAAAAAAAAAAAA"]
    assert second.split() == ["2023-11-14", "22:13:20", "unknown", "-", "-", "websocket", "device", "-", "main", "-"]
    assert header.index("jti") == first.index("AAAA")
    assert (empty, total) == ("", "2 sessions at 1 gateway (main)")


@pytest.mark.parametrize(
    ("result", "out", "err"),
    [
        ({"gateways": [], "sessions": []}, "no gateway is connected to the broker, so it knows of no session; ", ""),
        ({"gateways": [GATEWAY], "sessions": []}, "no session is open at 1 gateway (main)\n", ""),
        (
            {"gateways": [{**GATEWAY, "current": False}], "sessions": []},
            "no session is open at 1 gateway (main)\n",
            "gatepass: the gateway 'main' has not yet carried out the last revocation, lock or unlock\n",
        ),
        (
            {"gateways": [GATEWAY], "sessions": [SESSION], "more": 7},
            "since ",
            "gatepass: there are 7 more than the broker can tell at once\n",
        ),
    ],
    ids=["no gateway", "no session", "late", "more"],
)
def test_what_a_list_of_sessions_does_not_show_is_said(tmp_path: Path, result: Message, out: str, err: str) -> None:
    _, status, said, told = asked(tmp_path, result, "sessions")
    assert (status, told) == (0, err)
    assert said.startswith(out)


def test_what_was_left_behind_comes_with_how_to_remove_it_and_what_cannot_be_known(tmp_path: Path) -> None:
    request, status, out, _ = asked(tmp_path, {"left_behind": [LEFT]}, "sessions", "--left-behind")
    assert (request, status) == ({"op": "left_behind"}, 0)
    header, row, _, *note = out.splitlines()
    assert header.split() == ["when", "kind", "id", "by", "to", "remove", "it"]
    by = f"derek@example.com ({ME.pw_name}) in openclaw.service"
    assert re.fullmatch(rf"2023-11-14 22:13:20  device  d1  {re.escape(by)}  openclaw devices remove d1", row), row
    assert "'openclaw cron list --all' and 'openclaw devices list'" in " ".join(note)


def test_even_an_empty_list_of_what_was_left_behind_says_what_it_cannot_know(tmp_path: Path) -> None:
    _, status, out, _ = asked(tmp_path, {"left_behind": []}, "sessions", "--left-behind")
    assert status == 0
    assert out.startswith("no session has left anything behind that gatepass saw\n")
    assert "'openclaw cron list --all'" in out


def test_lists_as_json(tmp_path: Path) -> None:
    sessions = {"gateways": [GATEWAY], "sessions": [SESSION]}
    shown = json.loads(asked(tmp_path, sessions, "sessions", "--json")[2])
    assert shown == {"gateways": [GATEWAY], "sessions": [SESSION], "more": 0}
    (tmp_path / "s").unlink()
    shown = json.loads(asked(tmp_path, {"left_behind": [LEFT]}, "sessions", "--left-behind", "--json")[2])
    assert shown == {"left_behind": [{**LEFT, "jti": None}], "more": 0}


EXPLAINED_DENIAL = f"""\
the broker saw
  user     {ME.pw_uid} ({ME.pw_name})
  group    {ME.pw_gid}
  groups   4 27
  process  4242
  unit     session-3.scope
  slices   user.slice user-1000.slice
  cgroup   /user.slice/user-1000.slice/session-3.scope

its rules, in order
  openclaw  no: unit is session-3.scope, not openclaw.service
  ops       no: container is unknown, not abc
  hidden    no

its decision
  denied  no rule matches; ask the administrator for one

what would change it
  1. Ask for less.
     --scope 'a b' --ttl 60 --bind unit
  2. Let what runs in this unit in, by a rule of its own.

[[rule]]
name = "session"
unit = "session-3.scope"

"""
EXPLAINED_GRANT = """\
its rules, in order
  derek  matches
  all    not reached
  … and 5 more that do not decide

its decision
  allowed   by rule 'derek'
  identity  derek@example.com
  audience  openclaw
  scope     operator.read
  life      300 s
  binding   unit
"""


def test_a_denial_is_explained(tmp_path: Path) -> None:
    request, status, out, err = asked(tmp_path, DENIED, "explain", "--scope", "a b c", "--ttl", "60", "--bind", "unit")
    assert request == {"op": "explain", "scope": "a b c", "ttl": 60, "binding": "unit"}
    assert (status, err) == (3, "")
    assert out.splitlines() == EXPLAINED_DENIAL.splitlines()


def test_a_grant_is_explained(tmp_path: Path) -> None:
    request, status, out, err = asked(tmp_path, ALLOWED, "explain", "--audience", "openclaw")
    assert request == {"op": "explain", "audience": "openclaw"}
    assert (status, err) == (0, "")
    assert out.endswith(EXPLAINED_GRANT)


@pytest.mark.parametrize(
    ("code", "status", "label"),
    [
        ("denied", 3, "denied"),
        ("locked", 3, "denied"),
        ("rate_limited", 4, "not now"),
        ("connect_again", 4, "not now"),
        (None, 3, "denied"),
    ],
)
def test_the_exit_status_is_what_the_request_would_get(
    tmp_path: Path, code: str | None, status: int, label: str
) -> None:
    decision = {"allowed": False, "code": code, "reason": "the reason", "retry_after": 7}
    _, exited, out, _ = asked(tmp_path, {**DENIED, "decision": decision}, "explain")
    assert exited == status
    assert f"\n  {label}  the reason\n" in out


def test_an_explanation_as_json_is_the_whole_of_it_with_the_same_exit_status(tmp_path: Path) -> None:
    _, status, out, _ = asked(tmp_path, DENIED, "explain", "--json")
    shown = json.loads(out)
    assert status == 3
    assert shown["caller"]["slices"] == ["user.slice", "user-1000.slice"]
    assert shown["rules"][0]["failed"]["wanted"] == "openclaw.service"
    assert shown["cures"][1]["toml"] == DENIED["cures"][1]["toml"]
    assert shown["cures"][0]["arguments"] == {"scope": "a b", "ttl": 60, "binding": "unit"}


def test_a_process_is_asked_about_by_its_pid(tmp_path: Path) -> None:
    assert asked(tmp_path, DENIED, "explain", "--pid", "17")[0] == {"op": "explain", "pid": 17}


def test_a_user_is_asked_about_with_the_groups_of_a_new_login(tmp_path: Path) -> None:
    request = asked(tmp_path, DENIED, "explain", "--as", ME.pw_name)[0]
    groups = sorted(os.getgrouplist(ME.pw_name, ME.pw_gid))
    assert request == {"op": "explain", "uid": ME.pw_uid, "gid": ME.pw_gid, "groups": groups}


def test_a_user_without_an_account_is_asked_about_by_number_alone(tmp_path: Path) -> None:
    assert asked(tmp_path, DENIED, "explain", "--as", "3987654321")[0] == {"op": "explain", "uid": 3_987_654_321}


def test_an_explanation_fits_80_columns(tmp_path: Path) -> None:
    reason = "no rule of the broker matches, because it runs elsewhere; " * 4
    groups = list(range(1000, 1060))
    wordy = {
        **DENIED,
        "caller": {**DENIED["caller"], "groups": groups},
        "decision": {**DENIED["decision"], "reason": reason},
    }
    _, _, out, _ = asked(tmp_path, wordy, "explain")
    assert max(map(len, out.splitlines())) <= 80
    assert " ".join(out.split()).count("because it runs elsewhere") == 4


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (["sessions"], "/run/gatepass/admin.sock"),
        (["sessions", "--left-behind"], "/run/gatepass/admin.sock"),
        (["revoke", "--all"], "/run/gatepass/admin.sock"),
        (["lock"], "/run/gatepass/admin.sock"),
        (["unlock"], "/run/gatepass/admin.sock"),
        (["explain", "--as", "root"], "/run/gatepass/admin.sock"),
        (["explain", "--pid", "1"], "/run/gatepass/admin.sock"),
        (["explain"], "/run/gatepass/broker.sock"),
        (["token"], "/run/gatepass/broker.sock"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_each_command_asks_at_its_socket(tmp_path: Path, command: list[str], place: str) -> None:
    if os.path.lexists(place):
        pytest.skip("this machine has a broker")
    done = run_cli(*command, "--timeout", "0.4", env={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert (done.returncode, done.stdout) == (5, "")
    assert f"{place} does not exist" in done.stderr


@both_clients
@pytest.mark.parametrize(
    ("method", "arguments", "named", "request_", "result"),
    [
        ("issue", (None, None, None, "process"), {}, {"op": "issue", "binding": "process"}, None),
        ("explain", ("a",), {"pid": 3}, {"op": "explain", "audience": "a", "pid": 3}, DENIED),
        (
            "explain",
            (),
            {"uid": 3, "gid": 4, "groups": [5]},
            {"op": "explain", "uid": 3, "gid": 4, "groups": [5]},
            DENIED,
        ),
        ("sessions", (), {}, {"op": "sessions"}, {"gateways": [], "sessions": []}),
        ("left_behind", (), {}, {"op": "left_behind"}, {"left_behind": []}),
        ("revoke", ("all",), {}, {"op": "revoke", "by": "all", "value": ""}, DONE),
        ("revoke", ("uid", "3"), {}, {"op": "revoke", "by": "uid", "value": "3"}, DONE),
        ("lock", (), {}, {"op": "lock"}, DONE),
        ("unlock", (), {}, {"op": "unlock"}, DONE),
    ],
)
async def test_both_clients_send_the_same(  # noqa: PLR0917 - the columns of the table
    kind: str,
    tmp_path: Path,
    method: str,
    arguments: Sequence[Any],
    named: dict[str, Any],
    request_: Message,
    result: Message | None,
) -> None:
    requests: list[Message] = []
    with scripted(tmp_path / "s", recording(requests, result or ISSUE_RESULT)):
        await call(kind, tmp_path / "s", method, *arguments, **named)
    assert requests == [request_]


@pytest.mark.parametrize("bind", ["uid", "unit", "process"])
def test_run_asks_for_the_binding_that_it_is_told(tmp_path: Path, bind: str) -> None:
    request, status, _, _ = asked(tmp_path, ISSUE_RESULT, "run", "--bind", bind, "--", "true")
    assert (request, status) == ({"op": "issue", "binding": bind}, 0)


def test_a_token_is_bound_as_asked_and_by_default_as_the_rule_demands(tmp_path: Path) -> None:
    assert asked(tmp_path, ISSUE_RESULT, "token", "--bind", "unit")[0] == {"op": "issue", "binding": "unit"}
    (tmp_path / "s").unlink()
    assert asked(tmp_path, ISSUE_RESULT, "token")[0] == {"op": "issue"}
