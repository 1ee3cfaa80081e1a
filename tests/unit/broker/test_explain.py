"""What explain says: of the caller, of each rule, of the decision, and of what would change it."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from gatepass.frames import encode_frame
from gatepass.messages import Binding, IssueRequest
from gatepass_broker.caller import Caller, Cgroup
from gatepass_broker.events import Issued, Locked
from gatepass_broker.explain import MAX_GROUPS, explain
from gatepass_broker.judge import Rules
from gatepass_broker.policy import Grant, Rule, condition
from gatepass_broker.state import State

SERVICE = Cgroup(
    id=77,
    path="/system.slice/openclaw.service",
    unit="openclaw.service",
    slices=("system.slice",),
    unit_id=77,
)
DEREK = Caller(1000, 1000, frozenset({100, 27}), 4711, 12345, SERVICE, nested=False)
GRANT = Grant("people", "alice@example.com", ("openclaw", "other"), ("operator.read", "operator.write"), 600)
OTHERS = Rule((condition("uid", 7),), GRANT._replace(rule="others"))
PEOPLE = Rule((condition("uid", 1000),), GRANT)
RULES = Rules("gatepass:host", (OTHERS, PEOPLE), 300, "/etc/gatepass/broker.toml", max_ttl=3_600)
NO_RULE = RULES._replace(rules=(OTHERS,))


def explained(
    rules: Rules = RULES, caller: Caller = DEREK, state: State | None = None, **options: Any
) -> dict[str, Any]:
    request = IssueRequest(**{key: value for key, value in options.items() if key in IssueRequest._fields})
    exited, as_admin = options.get("exited", False), options.get("as_admin", False)
    return explain(rules, state or State(), caller, request, exited=exited, time=100, as_admin=as_admin)


def kinds(explanation: dict[str, Any]) -> list[str]:
    return [cure["kind"] for cure in explanation["cures"]]


def proposed(explanation: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return where a rule is to go, and the rule."""
    (cure,) = (cure for cure in explanation["cures"] if cure["kind"] == "policy")
    (rule,) = tomllib.loads(cure["toml"])["rule"]
    return cure["place"], rule


def test_an_allowed_request() -> None:
    assert explained(scope="operator.read") == {
        "caller": {
            "uid": 1000,
            "gid": 1000,
            "groups": [27, 100],
            "pid": 4711,
            "unit": "openclaw.service",
            "slices": ["system.slice"],
            "manager_uid": None,
            "user_unit": None,
            "user_slices": [],
            "cgroup": "/system.slice/openclaw.service",
            "container": None,
            "pid_namespace": "host",
        },
        "rules": [
            {
                "rule": "others",
                "matches": False,
                "failed": {"selector": "uid", "wanted": "7", "found": "1000"},
                "skipped": False,
            },
            {"rule": "people", "matches": True, "failed": None, "skipped": False},
        ],
        "decision": {
            "allowed": True,
            "code": None,
            "reason": None,
            "rule": "people",
            "identity": "alice@example.com",
            "audience": "openclaw",
            "scope": "operator.read",
            "ttl": 300,
            "binding": "uid",
        },
        "cures": [],
    }


def test_what_is_unknown_is_none() -> None:
    caller = explained(caller=Caller(None, None, frozenset(), None, None))["caller"]

    assert {key for key, value in caller.items() if value is not None} == {"groups"}
    assert explained(caller=DEREK._replace(nested=True))["caller"]["pid_namespace"] == "nested"


def test_a_caller_whom_no_rule_matches() -> None:
    explanation = explained(NO_RULE, audience="x", scope="a.b", ttl=30, binding="unit")

    assert explanation["decision"]["code"] == "denied"
    assert "no rule of the broker matches uid 1000" in explanation["decision"]["reason"]
    assert explanation["decision"]["rule"] is None
    assert proposed(explanation) == (
        "last",
        {
            "name": "uid 1000",
            "uid": 1000,
            "unit": "openclaw.service",
            "audiences": ["x"],
            "scopes": ["a.b"],
            "max_ttl": 30,
            "bind": "unit",
        },
    )


def test_the_least_that_is_of_use_for_a_request_that_says_nothing() -> None:
    place, rule = proposed(explained(NO_RULE))

    assert place == "last"
    assert rule == {
        "name": "uid 1000",
        "uid": 1000,
        "unit": "openclaw.service",
        "scopes": ["operator.read"],
        "max_ttl": 300,
        "bind": "uid",
    }


def test_a_request_beyond_the_rule_that_matches() -> None:
    explanation = explained(audience="third", scope="operator.admin operator.read", ttl=700)

    assert explanation["decision"]["rule"] == "people"
    assert explanation["cures"][0]["arguments"] == {"audience": "openclaw", "scope": "operator.read", "ttl": 600}
    assert proposed(explanation) == (
        "before people",
        {
            "name": "uid 1000",
            "uid": 1000,
            "unit": "openclaw.service",
            # What the rule gives whose place it takes, and what was asked for.
            "audiences": ["openclaw", "other", "third"],
            "scopes": ["operator.read", "operator.write", "operator.admin"],
            "max_ttl": 700,
            "bind": "uid",
            "identity": "alice@example.com",
            "reconnect": 0,
        },
    )


def test_a_rule_instead_of_another_is_no_weaker_than_that() -> None:
    strict = GRANT._replace(binding=Binding.UNIT, reconnect=60, per_minute=5)
    _, rule = proposed(explained(RULES._replace(rules=(Rule(PEOPLE.selector, strict),)), scope="more"))

    assert (rule["bind"], rule["reconnect"], rule["per_minute"]) == ("unit", 60, 5)


def test_nothing_of_what_is_wanted_is_given() -> None:
    assert explained(scope="a b")["cures"][0]["arguments"] == {"scope": "operator.read operator.write"}


@pytest.mark.parametrize(
    "wanted", [{"audience": "ü"}, {"scope": "operator.*"}, {"scope": 'a"b'}, {"scope": "é"}, {"ttl": 3_601}]
)
def test_no_rule_is_proposed_for_what_no_rule_can_give(wanted: dict[str, Any]) -> None:
    assert kinds(explained(**wanted)) == ["request"]


@pytest.mark.parametrize(
    ("unit", "selectors"),
    [
        ("openclaw@a\\x2db.service", {"uid": 1000, "unit": "openclaw@a\\x2db.service"}),
        ("session-12.scope", {"uid": 1000, "unit": "session-*.scope"}),
        ("session-c3.scope", {"uid": 1000, "unit": "session-*.scope"}),
        ("session-x.scope", {"uid": 1000, "unit": "session-x.scope"}),
        ('x"\nuid = 0 #.service', {"uid": 1000}),
        ("*.service", {"uid": 1000}),
        (None, {"uid": 1000}),
    ],
)
def test_whom_a_proposed_rule_is_for(unit: str | None, selectors: dict[str, Any]) -> None:
    _, rule = proposed(explained(NO_RULE, DEREK._replace(cgroup=SERVICE._replace(unit=unit))))

    assert {key: rule[key] for key in ("uid", "unit") if key in rule} == selectors


def test_a_unit_that_its_user_can_name_as_they_like_is_not_proposed() -> None:
    shell = SERVICE._replace(unit="user@1000.service", manager_uid=1000, user_unit="openclaw.service")
    _, rule = proposed(explained(NO_RULE, DEREK._replace(cgroup=shell)))

    assert rule["unit"] == "user@1000.service"
    assert "user_unit" not in rule


def test_a_name_that_no_other_rule_has() -> None:
    taken = tuple(Rule(OTHERS.selector, GRANT._replace(rule=name)) for name in ("uid 1000", "uid 1000 (2)"))

    assert proposed(explained(RULES._replace(rules=taken)))[1]["name"] == "uid 1000 (3)"


def test_who_does_it() -> None:
    texts = [explained(NO_RULE, as_admin=as_admin)["cures"][0]["text"] for as_admin in (False, True)]

    assert texts[0].startswith("ask an administrator to have this rule put after the others in /etc/gatepass/broker")
    assert texts[1].startswith("have this rule put after the others in /etc/gatepass/broker.toml")


def test_under_lock() -> None:
    state = State()
    state.apply(Locked(time=1, uid=0))
    explanation = explained(state=state)

    assert explanation["decision"]["code"] == "locked"
    assert kinds(explanation) == ["unlock"]
    assert "gatepass unlock" in explanation["cures"][0]["text"]


def test_a_rule_that_is_used_up_for_now() -> None:
    state, limited = State(), Rule(PEOPLE.selector, GRANT._replace(per_minute=1))
    state.apply(Issued(time=90, jti="", sub="", aud="", scope="", exp=0, uid=1000, gid=None, pid=None, rule="people"))
    explanation = explained(RULES._replace(rules=(limited,)), state=state)

    assert explanation["decision"]["code"] == "rate_limited"
    assert explanation["decision"]["retry_after"] == explanation["cures"][0]["seconds"] == 51
    assert kinds(explanation) == ["wait"]


@pytest.mark.parametrize(
    ("rules", "caller", "options", "word"),
    [
        (RULES, DEREK, {"exited": True}, "connect from the process that asks"),
        (RULES, DEREK._replace(uid=None), {}, "user namespace"),
        (RULES._replace(rules=(Rule((condition("unit", "a.service"),), GRANT),)),
         DEREK._replace(cgroup=None, unsettled=True), {}, "connect again"),
        (NO_RULE._replace(source=None), DEREK, {}, "ask as the user who started this broker"),
    ],
)  # fmt: skip
def test_what_only_the_caller_can_do(rules: Rules, caller: Caller, options: dict[str, Any], word: str) -> None:
    explanation = explained(rules, caller, **options)

    assert kinds(explanation) == ["caller"]
    assert word in explanation["cures"][0]["text"]


def test_a_binding_that_the_caller_cannot_have() -> None:
    unknown = DEREK._replace(cgroup=None, process=None)
    by_request = explained(caller=unknown, binding="process")
    by_rule = explained(RULES._replace(rules=(Rule(PEOPLE.selector, GRANT._replace(binding=Binding.UNIT)),)), unknown)

    assert kinds(by_request) == ["request", "caller"]
    assert by_request["cures"][0]["arguments"] == {"binding": "uid"}
    assert "Linux 6.9" in by_request["cures"][1]["text"]
    assert kinds(by_rule) == ["policy", "caller"]
    assert proposed(by_rule)[1]["bind"] == "uid"
    assert "cgroup v2" in by_rule["cures"][1]["text"]


def test_a_personal_broker_has_no_file_to_put_a_rule_into() -> None:
    assert kinds(explained(RULES._replace(source=None), scope="more")) == ["request"]


def test_the_deciding_rule_is_shown_however_many_there_are() -> None:
    """A reply is a frame of at most 64 KiB."""
    many = tuple(Rule((condition("unit", "u" * 900),), GRANT._replace(rule=f"r{n}" + "é" * 250)) for n in range(400))
    cgroup = SERVICE._replace(path="/" + "\udcff" * 4_000, unit="a\nb", slices=("\x1b[1m",))
    caller = DEREK._replace(groups=frozenset(range(60_000)), cgroup=cgroup)
    explanation = explained(RULES._replace(rules=(*many, PEOPLE)), caller, scope="é" * 4_096)

    assert explanation["rules"][-1]["rule"] == "people"
    assert len(explanation["rules"]) + explanation["rules_left_out"] == 401
    assert explanation["caller"]["groups"] == list(range(MAX_GROUPS))
    assert explanation["caller"]["groups_left_out"] == 60_000 - MAX_GROUPS
    assert explanation["caller"]["unit"] == r"a\nb"
    assert explanation["caller"]["slices"] == [r"\x1b[1m"]
    assert explanation["caller"]["cgroup"].startswith(r"/\udcff")
    assert encode_frame({"id": 1, "ok": True, **explanation})
