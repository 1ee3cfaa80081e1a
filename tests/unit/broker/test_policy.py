"""The policy decides by the first matching rule, and denies what goes beyond it."""

from __future__ import annotations

import pytest

from gatepass.errors import DeniedError, ErrorCode
from gatepass.messages import Binding, IssueRequest
from gatepass_broker.caller import Caller, Cgroup
from gatepass_broker.operator_scopes import OPERATOR_SCOPES
from gatepass_broker.policy import (
    Grant,
    Mismatch,
    Rule,
    Selector,
    Terms,
    agree,
    can_bind,
    condition,
    find_grant,
    first_mismatch,
)

CONTAINER = "0123456789abcdef" * 4
SERVICE = Cgroup(
    id=77,
    path="/system.slice/agents.slice/openclaw@main.service/child",
    unit="openclaw@main.service",
    slices=("system.slice", "agents.slice"),
    unit_id=76,
)
MANAGER = "/user.slice/user-1000.slice/user@1000.service"
SHELL = Cgroup(
    id=88,
    path=f"{MANAGER}/app.slice/tui.scope",
    unit="user@1000.service",
    slices=("user.slice", "user-1000.slice"),
    manager_uid=1000,
    user_unit="tui.scope",
    user_slices=("app.slice",),
    unit_id=88,
)
IN_CONTAINER = SERVICE._replace(container=CONTAINER)
DEREK = Caller(uid=1000, gid=1000, groups=frozenset({27, 100}), pid=4711, process=12345, cgroup=SERVICE, nested=False)
IN_SHELL = DEREK._replace(cgroup=SHELL)
UNKNOWN = DEREK._replace(cgroup=None, nested=None, process=None)
GRANT = Grant("derek", "derek@example.com", ("openclaw", "other"), ("operator.read", "operator.write"), 600)
PATTERNS = GRANT._replace(scopes=("custom", "operator.read"), scope_patterns=("operator.sessions.*", "x.*.y"))


def rule(name: str, *selector: object) -> Rule:
    return Rule(of(*selector), GRANT._replace(rule=name))


def of(*pairs: object) -> Selector:
    """Return the selector with these keys and values, in turn."""
    return tuple(
        condition(str(key), *(values if isinstance(values, tuple) else (values,)))
        for key, values in zip(pairs[::2], pairs[1::2], strict=True)
    )


def matching(caller: Caller, *rules: Rule) -> str | None:
    grant = find_grant(rules, caller)
    return None if grant is None else grant.rule


def test_without_rules_nobody_has_a_grant() -> None:
    assert find_grant((), DEREK) is None


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (of("uid", 1000), True),
        (of("uid", (1, 1000)), True),
        (of("uid", 1001), False),
        (of("gid", 1000), True),
        (of("gid", 27), True),
        (of("gid", 28), False),
        (of("uid", 1000, "gid", 27), True),
        (of("uid", 1000, "gid", 28), False),
        (of("uid", 1001, "gid", 27), False),
        (of("gid", 27, "group", 100), True),
        (of("gid", 27, "group", 28), False),
        (of("uid", 1000, "unit", "openclaw@main.service"), True),
        (of("uid", 1000, "unit", "nginx.service"), False),
        ((condition("uid"),), False),
        ((), False),
    ],
)
def test_every_selector_must_match(selector: Selector, expected: bool) -> None:
    assert (find_grant((Rule(selector, GRANT),), DEREK) is GRANT) is expected


@pytest.mark.parametrize(
    ("caller", "key", "value", "expected"),
    [
        (DEREK, "unit", "openclaw@main.service", True),
        (DEREK, "unit", ("nginx.service", "openclaw@main.service"), True),
        (DEREK, "unit", "openclaw@*.service", True),
        (DEREK, "unit", "*.service", True),
        (DEREK, "unit", "*@*in*.service", True),
        (DEREK, "unit", "openclaw@*.scope", False),
        (DEREK, "unit", "openclaw@.service", False),
        (DEREK, "unit", "Openclaw@main.service", False),
        (DEREK, "unit", "main.service", False),
        (DEREK, "unit", "openclaw@main", False),
        (DEREK._replace(cgroup=SERVICE._replace(unit="openclawXmain.service")), "unit", "openclaw.main.service", False),
        (DEREK._replace(cgroup=SERVICE._replace(unit="a/b.service")), "unit", "a*b.service", False),
        (DEREK._replace(cgroup=SERVICE._replace(unit="a.service\n")), "unit", "a.service", False),
        (DEREK._replace(cgroup=SERVICE._replace(unit=None)), "unit", "*.service", False),
        (IN_SHELL, "unit", "tui.scope", False),
        (IN_SHELL, "unit", "user@1000.service", True),
        (IN_SHELL, "user_unit", "tui.scope", True),
        (IN_SHELL, "user_unit", "*.scope", True),
        (DEREK, "user_unit", "openclaw@main.service", False),
        (IN_SHELL._replace(uid=1001), "user_unit", "tui.scope", False),
        (IN_SHELL._replace(uid=0), "user_slice", "app.slice", False),
        (IN_SHELL, "user_slice", "app.slice", True),
        (IN_SHELL, "slice", "app.slice", False),
        (IN_SHELL, "slice", "user-*.slice", True),
        (DEREK, "slice", "agents.slice", True),
        (DEREK, "slice", "system.slice", True),
        (DEREK, "slice", "agents", False),
        (DEREK, "cgroup", "/system.slice/agents.slice", True),
        (DEREK, "cgroup", SERVICE.path, True),
        (DEREK, "cgroup", "/", True),
        (DEREK, "cgroup", "/system.slice/agents", False),
        (DEREK, "cgroup", f"{SERVICE.path}/deeper", False),
        (DEREK, "cgroup", "/agents.slice", False),
        (DEREK._replace(cgroup=SERVICE._replace(path="/a\n/b")), "cgroup", "/a", False),
        (DEREK._replace(cgroup=SERVICE._replace(path="/a/b\nc")), "cgroup", "/a", True),
        (DEREK._replace(cgroup=IN_CONTAINER), "container", CONTAINER, True),
        (DEREK._replace(cgroup=IN_CONTAINER), "container", CONTAINER[:12], True),
        (DEREK._replace(cgroup=IN_CONTAINER), "container", CONTAINER[1:13], False),
        (DEREK._replace(cgroup=IN_CONTAINER), "container", f"{CONTAINER[:-1]}0", False),
        (DEREK, "container", CONTAINER, False),
        (DEREK, "pid_namespace", "host", True),
        (DEREK, "pid_namespace", "nested", False),
        (DEREK._replace(nested=True), "pid_namespace", "nested", True),
        (DEREK._replace(nested=True), "pid_namespace", "host", False),
        (DEREK, "pid_namespace", ("host", "nested"), True),
        (UNKNOWN, "pid_namespace", ("host", "nested"), False),
        (UNKNOWN, "unit", "*.service", False),
        (UNKNOWN, "slice", "*.slice", False),
        (UNKNOWN, "cgroup", "/", False),
    ],
)
def test_selectors_of_a_place(caller: Caller, key: str, value: object, expected: bool) -> None:
    assert (matching(caller, rule("it", key, value)) == "it") is expected


def test_the_first_matching_rule_is_the_only_one() -> None:
    assert matching(DEREK, rule("other", "uid", 1), rule("a", "gid", 27), rule("b", "uid", 1000)) == "a"


def test_an_unknown_uid_has_no_grant_even_by_its_groups_or_unit() -> None:
    nobody = DEREK._replace(uid=None)

    assert matching(nobody, rule("group", "gid", 27), rule("unit", "unit", "*.service")) is None


def test_a_user_manager_of_nobody_known_is_not_that_of_an_unknown_user() -> None:
    """None equals None: neither may stand for the other."""
    stray = IN_SHELL._replace(uid=None, cgroup=SHELL._replace(manager_uid=None))

    assert matching(stray, rule("it", "user_unit", "tui.scope")) is None


def test_an_unknown_gid_matches_nothing() -> None:
    nobody = DEREK._replace(gid=None, groups=frozenset())

    assert matching(nobody, rule("group", "gid", (1000, 65534))) is None


@pytest.mark.parametrize(
    ("caller", "selector", "mismatch"),
    [
        (DEREK, of("uid", 1000), None),
        (DEREK, of("uid", (1, 2)), Mismatch("uid", "1, 2", "1000")),
        (DEREK, of("uid", 1000, "gid", 5), Mismatch("gid", "5", "27, 100, 1000")),
        (DEREK, of("uid", 1000, "unit", "a.service", "slice", "b.slice"),
         Mismatch("unit", "a.service", "openclaw@main.service")),
        (DEREK, of("slice", "b.slice"), Mismatch("slice", "b.slice", "system.slice, agents.slice")),
        (DEREK, of("container", CONTAINER), Mismatch("container", CONTAINER, "none")),
        (DEREK, of("user_unit", "a.scope"), Mismatch("user_unit", "a.scope", "none")),
        (IN_SHELL._replace(uid=0), of("user_unit", "tui.scope"),
         Mismatch("user_unit", "tui.scope", "none of its own; it runs in the manager of uid 1000")),
        (UNKNOWN, of("unit", "a.service"), Mismatch("unit", "a.service", "unknown")),
        (UNKNOWN, of("pid_namespace", "host"), Mismatch("pid_namespace", "host", "unknown")),
        (UNKNOWN._replace(gid=None, groups=frozenset()), of("gid", 5), Mismatch("gid", "5", "unknown")),
        (DEREK._replace(uid=None), of("unit", "*.service"), Mismatch("uid", "a user who is known", "unknown")),
        (DEREK, (condition("user", 1, wanted="eve (1)"),), Mismatch("user", "eve (1)", "1000")),
        (DEREK, (condition("uid"),), Mismatch("uid", "nobody", "1000")),
        (DEREK, (), Mismatch("uid", "nobody: the rule has no selector", "1000")),
    ],
)  # fmt: skip
def test_the_first_selector_that_fails_is_named(caller: Caller, selector: Selector, mismatch: Mismatch | None) -> None:
    assert first_mismatch(selector, caller) == mismatch


@pytest.mark.parametrize(
    ("request_", "terms"),
    [
        (IssueRequest(), Terms("openclaw", GRANT.scopes, 300)),
        (IssueRequest(audience="other"), Terms("other", GRANT.scopes, 300)),
        (IssueRequest(scope=""), Terms("openclaw", (), 300)),
        (IssueRequest(scope="operator.read"), Terms("openclaw", ("operator.read",), 300)),
        (IssueRequest(scope="operator.write  operator.read operator.read"), Terms("openclaw", GRANT.scopes, 300)),
        (IssueRequest(ttl=600), Terms("openclaw", GRANT.scopes, 600)),
        (IssueRequest(ttl=1), Terms("openclaw", GRANT.scopes, 1)),
        (IssueRequest(binding="uid"), Terms("openclaw", GRANT.scopes, 300)),
        (IssueRequest(binding="unit"), Terms("openclaw", GRANT.scopes, 300, Binding.UNIT)),
        (IssueRequest(binding="process"), Terms("openclaw", GRANT.scopes, 300, Binding.PROCESS)),
    ],
)
def test_a_request_within_its_grant(request_: IssueRequest, terms: Terms) -> None:
    assert agree(request_, GRANT, 300, DEREK) == terms


def test_the_default_life_is_never_longer_than_the_grant() -> None:
    assert agree(IssueRequest(), GRANT._replace(max_ttl=60), 300, DEREK).ttl == 60


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (IssueRequest(audience="Openclaw"), "granted: openclaw, other"),
        (IssueRequest(scope="operator.read operator.admin"), "scope 'operator.admin' is not granted"),
        (IssueRequest(scope="operator.read operator.READ"), "operator.READ"),
        (IssueRequest(ttl=601), "ask for at most 600 s"),
    ],
)
def test_a_request_beyond_its_grant_is_denied_with_the_reason(request_: IssueRequest, reason: str) -> None:
    with pytest.raises(DeniedError, match=reason) as caught:
        agree(request_, GRANT, 300, DEREK)

    assert caught.value.code is ErrorCode.DENIED


class TestScopePatterns:
    def scope(self, scope: str | None, grant: Grant = PATTERNS) -> tuple[str, ...]:
        return agree(IssueRequest(scope=scope), grant, 300, DEREK).scope

    def test_a_request_may_name_what_fits(self) -> None:
        wanted = ("custom", "operator.read", "operator.sessions.", "operator.sessions.new", "x..y", "x.a.b.y")

        assert self.scope(" ".join(wanted)) == wanted

    @pytest.mark.parametrize(
        "scope",
        ["operator.write", "operator.Sessions.read", "xoperator.sessions.read", "operator.sessions", "x.y", "x.a.yz",
         "operator.sessions.*", "x.*.y", 'operator.sessions."', "operator.sessions.\\", "operator.sessions.é",
         "operator.sessions.a\x00"],
    )  # fmt: skip
    def test_nothing_else(self, scope: str) -> None:
        with pytest.raises(DeniedError, match=r"granted: custom operator\.read operator\.sessions\.\* x\.\*\.y"):
            self.scope(scope)

    def test_a_request_that_names_none_gets_openclaws_that_fit_and_the_names(self) -> None:
        assert self.scope(None) == ("custom", "operator.read", "operator.sessions.read", "operator.sessions.write")
        assert self.scope(None, GRANT._replace(scopes=(), scope_patterns=("*",))) == OPERATOR_SCOPES

    def test_many_stars_do_not_cost_more_than_one(self) -> None:
        """What a caller sends is up to 4,096 characters long; with backtracking this takes years."""
        grant = GRANT._replace(scope_patterns=("a*a*a*a*a*a*a*b",))
        with pytest.raises(DeniedError):
            self.scope("a" * 4_096, grant)


class TestBinding:
    @pytest.mark.parametrize("demanded", Binding)
    @pytest.mark.parametrize("asked", [None, *Binding])
    def test_the_stricter_one_counts(self, demanded: Binding, asked: Binding | None) -> None:
        order = list(Binding)
        expected = max(demanded, asked or Binding.UID, key=order.index)

        assert agree(IssueRequest(binding=asked), GRANT._replace(binding=demanded), 300, DEREK).binding is expected

    @pytest.mark.parametrize(
        ("caller", "binding"),
        [
            (DEREK._replace(cgroup=None), Binding.UNIT),
            (DEREK._replace(cgroup=SERVICE._replace(unit_id=None)), Binding.UNIT),
            (DEREK._replace(process=None), Binding.PROCESS),
            (DEREK._replace(pid=None), Binding.PROCESS),
        ],
    )
    def test_what_is_unknown_cannot_be_bound_to(self, caller: Caller, binding: Binding) -> None:
        assert not can_bind(binding, caller)
        with pytest.raises(DeniedError, match="the rule 'derek' demands it"):
            agree(IssueRequest(), GRANT._replace(binding=binding), 300, caller)
        with pytest.raises(DeniedError, match="ask without binding"):
            agree(IssueRequest(binding=binding), GRANT, 300, caller)

    def test_asking_for_the_process_does_not_undo_that_the_rule_demands_the_unit(self) -> None:
        """Else a token would not be bound to the cgroup at all: it is left out where it is unknown."""
        with pytest.raises(DeniedError, match="bound to your unit"):
            agree(
                IssueRequest(binding="process"),
                GRANT._replace(binding=Binding.UNIT),
                300,
                DEREK._replace(cgroup=None),
            )


def test_the_root_of_all_cgroups_is_nothing_to_be_bound_to() -> None:
    at_root = DEREK._replace(cgroup=Cgroup(1, "/", unit_id=1))

    assert not can_bind(Binding.UNIT, at_root)
    assert can_bind(Binding.UNIT, DEREK._replace(cgroup=Cgroup(2, "/docker", unit_id=2)))
