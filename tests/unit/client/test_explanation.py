from __future__ import annotations

import pytest

from gatepass.errors import ProtocolError
from gatepass.explanation import Cure, Failed, RuleFinding, explanation_reply
from gatepass.frames import Message

RESULT: Message = {
    "caller": {
        "uid": 1000,
        "gid": 1000,
        "groups": [4, 27],
        "groups_left_out": 3,
        "pid": 42,
        "unit": "user@1000.service",
        "slices": ["user.slice", "user-1000.slice"],
        "manager_uid": 1000,
        "user_unit": "tui.scope",
        "user_slices": ["app.slice"],
        "cgroup": "/user.slice/user-1000.slice/user@1000.service/app.slice/tui.scope",
        "container": None,
        "pid_namespace": "host",
    },
    "rules": [
        {
            "rule": "service",
            "matches": False,
            "skipped": False,
            "failed": {"selector": "unit", "wanted": "openclaw.service", "found": "user@1000.service/tui.scope"},
        },
        {"rule": "derek", "matches": True, "skipped": False, "failed": None},
        {"rule": "all", "matches": False, "skipped": True},
    ],
    "rules_left_out": 2,
    "decision": {
        "allowed": False,
        "code": "denied",
        "reason": "scope 'operator.admin' is not granted",
        "rule": "derek",
        "identity": "derek@example.com",
        "audience": None,
        "scope": None,
        "ttl": None,
        "binding": None,
    },
    "cures": [
        {"kind": "ask", "text": "ask for less", "arguments": {"scope": "operator.read"}},
        {"kind": "rule", "text": "grant it", "toml": 'scopes = ["operator.admin"]', "place": "last"},
    ],
}
LEAST: Message = {"caller": {}, "decision": {"allowed": True}}


def test_what_the_broker_says_is_read() -> None:
    explanation = explanation_reply(RESULT)
    assert explanation.caller.slices == ("user.slice", "user-1000.slice")
    assert (explanation.caller.container, explanation.caller.groups_left_out) == (None, 3)
    assert (explanation.caller.manager_uid, explanation.caller.user_unit) == (1000, "tui.scope")
    assert explanation.rules == (
        RuleFinding("service", False, False, Failed("unit", "openclaw.service", "user@1000.service/tui.scope")),
        RuleFinding("derek", True, False, None),
        RuleFinding("all", False, True, None),
    )
    assert explanation.rules_left_out == 2
    assert (explanation.decision.allowed, explanation.decision.code) == (False, "denied")
    assert explanation.cures == (
        Cure("ask", "ask for less", None, None, {"scope": "operator.read"}),
        Cure("rule", "grant it", 'scopes = ["operator.admin"]', "last", {}),
    )


def test_what_the_broker_does_not_say_is_unknown() -> None:
    explanation = explanation_reply(LEAST)
    assert set(explanation.caller) == {None, (), 0}
    assert (explanation.rules, explanation.rules_left_out, explanation.cures) == ((), 0, ())
    assert set(explanation.decision[1:]) == {None}
    assert explanation_reply({**LEAST, "caller": {"groups": None, "slices": None}, "rules": None}) == explanation


def test_a_member_of_a_newer_broker_is_ignored() -> None:
    newer = {**RESULT, "new": 1, "caller": {**RESULT["caller"], "new": [1.5]}}
    assert explanation_reply(newer) == explanation_reply(RESULT)


@pytest.mark.parametrize(
    ("found", "words"), [(True, "yes"), (False, "no"), (7, "7"), ("x", "x"), ([1, "b"], "1, b"), (None, None), ([], "")]
)
def test_what_a_selector_wants_and_finds_is_said_in_words(found: object, words: str | None) -> None:
    rule = {"rule": "r", "matches": False, "failed": {"selector": "s", "wanted": found, "found": found}}
    (finding,) = explanation_reply({**LEAST, "rules": [rule]}).rules
    assert finding.failed == Failed("s", words, words)


@pytest.mark.parametrize(
    "wrong",
    [
        {"caller": None},
        {"caller": {"uid": "0"}},
        {"caller": {"groups": ["0"]}},
        {"caller": {"unit": 1}},
        {"caller": {"pid_namespace": {}}},
        {"decision": None},
        {"decision": {}},
        {"decision": {"allowed": 1}},
        {"decision": {"allowed": None}},
        {"decision": {"allowed": True, "ttl": "60"}},
        {"rules": [1]},
        {"rules": [{"rule": "r"}]},
        {"rules": [{"rule": "r", "matches": False, "skipped": 1}]},
        {"rules": [{"rule": "r", "matches": False, "failed": {"wanted": "x"}}]},
        {"rules": [{"rule": "r", "matches": False, "failed": {"selector": "x", "found": [[]]}}]},
        {"rules_left_out": "2"},
        {"cures": [{"kind": "rule"}]},
        {"cures": [{"kind": "rule", "text": "x", "toml": 1}]},
    ],
    ids=repr,
)
def test_what_is_of_another_type_breaks_the_protocol(wrong: Message) -> None:
    with pytest.raises(ProtocolError):
        explanation_reply({**LEAST, **wrong})
