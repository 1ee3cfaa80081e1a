"""Explain agrees with judge on random policies and callers, and its cures lead to an allow."""

from __future__ import annotations

import ast
import tomllib
from functools import cache
from typing import Any, NamedTuple, cast

import msgpack
from hypothesis import assume, given
from hypothesis import strategies as st

from gatepass.daemon.toml_tables import check_tables, parse_tables
from gatepass.errors import DeniedError, GatepassError, TryLaterError
from gatepass.messages import Binding, IssueRequest
from gatepass_broker.caller import Caller, Cgroup
from gatepass_broker.config import resolve
from gatepass_broker.events import Issued, Locked, Unlocked
from gatepass_broker.explain import explain
from gatepass_broker.judge import Agreed, Rules, judge
from gatepass_broker.policy import find_grant, first_mismatch
from gatepass_broker.schema import File, RulesFile
from gatepass_broker.state import State

MOST_ROUNDS = 3
"""The longest way is unlock, a rule, then the request; or unlock, the request, then a wait."""
NOW = 1_000_000.5
CONTAINERS = ("0" * 64, "0" * 12 + "1" * 52)

NONE = st.none()
ids = st.integers(0, 1)
units = st.sampled_from(["a.service", "b@1.service", "session-3.scope", "user@1.service"])
slices = st.sampled_from(["system.slice", "user.slice"])
paths = st.sampled_from(["/system.slice/a.service", "/system.slice/a.service/b", "/user.slice", "/"])
scopes = st.sampled_from(["operator.read", "operator.write", "operator.sessions.read", "custom", "é", "*", '"'])
granted_scopes = st.sampled_from(["operator.read", "operator.write", "custom", "operator.*", "*", "*.read"])
audiences = st.sampled_from(["openclaw", "other", 'a"]\\', "ü", " "])
granted_audiences = st.sampled_from(["openclaw", "other", "third"])
bindings = st.sampled_from([kind.value for kind in Binding])
unit_patterns = units | st.sampled_from(["*.service", "b@*.service", "user@*.service"])

selectors: st.SearchStrategy[tuple[str, Any]] = st.one_of(
    st.tuples(st.just("uid"), ids | st.just([0, 1])),
    st.tuples(st.just("gid"), ids | st.just([0, 1])),
    st.tuples(st.just("unit"), unit_patterns | st.lists(unit_patterns, min_size=1, max_size=2)),
    st.tuples(st.just("user_unit"), unit_patterns),
    st.tuples(st.just("slice"), slices),
    st.tuples(st.just("user_slice"), slices | st.just("*.slice")),
    st.tuples(st.just("cgroup"), paths),
    st.tuples(st.just("container"), st.sampled_from([*CONTAINERS, "0" * 12])),
    st.tuples(st.just("pid_namespace"), st.sampled_from(["host", "nested"])),
)
grants: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"scopes": st.lists(granted_scopes, max_size=2)},
    optional={
        "identity": st.sampled_from(["alice", 'odd" \\ name']),
        "audiences": st.lists(granted_audiences, min_size=1, max_size=2),
        "max_ttl": st.integers(1, 600),
        "bind": bindings,
        "reconnect": st.integers(0, 10),
        "per_minute": st.just(1),
    },
)
rule_tables = st.builds(
    lambda whom, gives: {**gives, **dict(whom)}, st.lists(selectors, min_size=1, max_size=2), grants
)


def mostly(usual: st.SearchStrategy[Any], rare: st.SearchStrategy[Any] = NONE) -> st.SearchStrategy[Any]:
    """`usual`, and one time in ten `rare`. (`one_of` does not count what it is given more than once.)"""
    return st.sampled_from([*[usual] * 9, rare]).flatmap(lambda chosen: chosen)


cgroups = st.builds(
    Cgroup,
    id=st.just(5),
    path=paths,
    unit=mostly(units, st.sampled_from([None, '"]\nuid = 0', "*.service", "x\udcff.service"])),
    slices=st.lists(slices, max_size=2).map(tuple),
    manager_uid=mostly(ids),
    user_unit=mostly(units | st.just('"\n[[rule]]\nuid = 0 #')),
    user_slices=st.lists(slices, max_size=2).map(tuple),
    container=st.none() | st.sampled_from(CONTAINERS),
    unit_id=mostly(st.just(4)),
)
settled_callers = st.builds(
    Caller,
    uid=mostly(ids),
    gid=mostly(ids),
    groups=st.frozensets(ids, max_size=1),
    pid=mostly(st.just(77)),
    process=mostly(st.just(99)),
    cgroup=mostly(cgroups),
    nested=mostly(st.booleans()),
    unsettled=st.just(False),
)
young_callers = settled_callers.map(lambda caller: caller._replace(cgroup=None, nested=None, unsettled=True))
callers = mostly(settled_callers, young_callers)
wishes = st.builds(
    IssueRequest,
    audience=st.none() | audiences,
    scope=st.none() | st.lists(scopes, max_size=3).map(" ".join),
    ttl=st.none() | st.integers(1, 1_000) | st.just(2**32 - 1),
    binding=st.none() | bindings,
)
requests = wishes | st.just(IssueRequest())


@cache
def rules_of(tables: str, source: str | None) -> Rules:
    """What the real configuration makes of tables, given as their repr: they cannot be hashed."""
    file = {
        "broker": {"id": "x", "loopback_user": "derek", "max_ttl": 600, "default_ttl": 300},
        "socket": [{"path": "/run/x"}],
        "rule": ast.literal_eval(tables),
    }
    return resolve(check_tables(file, File), source=source, digest="").rules


class World(NamedTuple):
    """All that a decision depends on, with the rules as a file has them."""

    tables: tuple[dict[str, Any], ...]
    source: str | None
    issues: tuple[int, ...]
    """For each rule, how many tokens the caller has had in this minute."""
    locked: bool
    caller: Caller
    request: IssueRequest
    exited: bool
    time: float

    @property
    def rules(self) -> Rules:
        return rules_of(repr(self.tables), self.source)

    @property
    def state(self) -> State:
        state, rules = State(), self.rules.rules
        for rule, count in zip(rules, self.issues, strict=False):
            for _ in range(count if self.caller.uid is not None else 0):
                state.apply(
                    Issued(time=NOW, jti="", sub="", aud="", scope="", exp=0, uid=self.caller.uid or 0, gid=None,
                           pid=None, rule=rule.grant.rule)
                )  # fmt: skip
        state.apply((Locked if self.locked else Unlocked)(time=1, uid=0))
        return state

    def explanation(self) -> dict[str, Any]:
        return explain(
            self.rules, self.state, self.caller, self.request, exited=self.exited, time=self.time, as_admin=False
        )

    def outcome(self) -> Agreed | GatepassError:
        try:
            return judge(self.rules, self.state, self.caller, self.request, exited=self.exited, time=self.time)
        except (DeniedError, TryLaterError) as error:
            return error


def named(tables: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Name all rules: a new rule must not give others another default name, by which their tokens are counted."""
    return tuple({"name": f"r{number}", **table} for number, table in enumerate(tables))


worlds = st.builds(
    World,
    tables=st.lists(rule_tables, min_size=1, max_size=4).map(named),
    source=mostly(st.just("broker.toml")),
    issues=st.tuples(*[st.integers(0, 1)] * 4),
    locked=mostly(st.just(False), st.just(True)),
    caller=callers,
    request=requests,
    exited=mostly(st.just(False), st.just(True)),
    time=st.just(NOW),
)
worlds_of_no_rule = worlds.map(lambda world: world._replace(tables=(), issues=()))
worlds_of_one_rule = st.builds(
    lambda world, gives: world._replace(tables=({**gives, "name": "it", "uid": [0, 1]},), locked=False, exited=False),
    worlds,
    grants,
)
denied_worlds = worlds | worlds_of_no_rule | worlds_of_one_rule


def apply(world: World, cure: dict[str, Any]) -> World | None:
    """Return the world after a cure; None for what only the caller itself can do."""
    match cure["kind"]:
        case "unlock":
            return world._replace(locked=False)
        case "wait":
            return world._replace(time=world.time + cure["seconds"])
        case "request":
            return world._replace(request=world.request._replace(**cure["arguments"]))
        case "policy":
            return with_rule(world, cure["toml"], cure["place"])
        case "caller" if cure["text"].startswith("connect again"):
            return world._replace(caller=world.caller._replace(unsettled=False))
    return None


def with_rule(world: World, toml: str, place: str) -> World:
    """Put a rule into the configuration, by the code that reads files of conf.d."""
    assert len(parse_tables(toml.encode(), RulesFile).rule) == 1
    (table,) = tomllib.loads(toml)["rule"]
    names = [rule["name"] for rule in world.tables]
    at = len(names) if place == "last" else names.index(place.removeprefix("before "))
    tables = (*world.tables[:at], table, *world.tables[at:])
    return world._replace(tables=tables, issues=(*world.issues[:at], 0, *world.issues[at:]))


def leads_to_an_allow(world: World, rounds: int) -> bool:
    """Whether cures of the next explanations end in an allow after so many rounds at most, or in what only the caller
    itself can do. To connect again, which the client does by itself, is no round.
    """
    explanation = world.explanation()
    if explanation["decision"]["allowed"]:
        return True
    assert explanation["cures"]
    cured = [(cure["kind"] != "caller", after) for cure in explanation["cures"] if (after := apply(world, cure))]
    return not cured or any(leads_to_an_allow(after, rounds - cost) for cost, after in cured if rounds >= cost)


@given(worlds)
def test_the_decision_is_that_of_judge(world: World) -> None:
    decision, outcome = world.explanation()["decision"], world.outcome()

    assert decision["allowed"] is isinstance(outcome, Agreed)
    if isinstance(outcome, Agreed):
        terms = outcome.terms
        assert (decision["rule"], decision["identity"]) == (outcome.grant.rule, outcome.grant.identity)
        assert (decision["audience"], decision["ttl"], decision["binding"]) == (
            terms.audience,
            terms.ttl,
            terms.binding,
        )
        assert decision["scope"] == " ".join(terms.scope)
    else:
        assert (decision["code"], decision["reason"]) == (outcome.code, outcome.message)
        assert decision.get("retry_after") == outcome.retry_after


@given(denied_worlds)
def test_every_cure_leads_to_an_allow(world: World) -> None:
    explanation = world.explanation()
    assert bool(explanation["cures"]) is not explanation["decision"]["allowed"]
    for cure in explanation["cures"]:
        after = apply(world, cure)
        rounds = MOST_ROUNDS - (cure["kind"] != "caller")
        assert after is None or leads_to_an_allow(after, rounds), cure


@given(denied_worlds)
def test_a_rule_or_request_allows_at_once_what_can_be_granted(world: World) -> None:
    """And the rule gives exactly what was asked for, as the identity that the caller had before."""
    assume(not world.locked)
    before = find_grant(world.rules.rules, world.caller)
    cures = world.explanation()["cures"]
    kinds = {cure["kind"] for cure in cures}
    for cure in cures:
        after = apply(world, cure)
        if after is None:
            continue
        outcome = after.outcome()
        if cure["kind"] == "request":
            assert not isinstance(outcome, DeniedError)
        if cure["kind"] == "policy" and "request" in kinds:
            assert isinstance(outcome, Agreed)
            assert before is not None
            assert outcome.grant.identity == before.identity
            assert outcome.terms.audience == (world.request.audience or before.audiences[0])
            if world.request.scope is not None:
                assert set(outcome.terms.scope) == set(world.request.scope.split())
            assert set(before.scopes) <= set(outcome.grant.scopes) <= {*before.scopes, *outcome.terms.scope}
            assert set(before.audiences) <= set(outcome.grant.audiences)
            assert before.max_ttl <= outcome.grant.max_ttl <= max(before.max_ttl, world.request.ttl or 0)


@given(denied_worlds, ids)
def test_a_proposed_rule_is_for_nobody_else(world: World, other: int) -> None:
    assume(other != world.caller.uid)
    for cure in world.explanation()["cures"]:
        after = apply(world, cure) if cure["kind"] == "policy" else None
        if after is None:
            continue
        (rule,) = (rule for rule in after.rules.rules if rule.grant.rule not in [each["name"] for each in world.tables])
        assert first_mismatch(rule.selector, world.caller._replace(uid=other)) is not None
        assert first_mismatch(rule.selector, world.caller) is None


@given(worlds)
def test_the_first_rule_that_matches_decides_alone(world: World) -> None:
    rules = world.rules.rules
    grant = find_grant(rules, world.caller)
    said = world.explanation()["rules"]
    first = next((number for number, rule in enumerate(said) if rule["matches"]), len(said))

    assert [rule["rule"] for rule in said] == [rule.grant.rule for rule in rules]
    assert [rule["skipped"] for rule in said] == [number > first for number in range(len(said))]
    assert all((rule["failed"] is None) is rule["matches"] for rule in said)
    assert grant == (rules[first].grant if first < len(said) else None)
    assert find_grant(rules[:first], world.caller) is None
    assert find_grant(rules[: first + 1], world.caller) == grant


@given(worlds, st.sampled_from(["uid", "gid", "cgroup", "nested", "unit", "user_unit", "container", "manager_uid"]))
def test_what_is_unknown_makes_no_rule_match(world: World, fact: str) -> None:
    """Knowing less never matches more; and where a rule asks for what is unknown, it does not match."""
    caller, unknown = world.caller, cast("dict[str, Any]", {fact: None})
    if fact in Caller._fields:
        less = caller._replace(**unknown)
    else:
        assume(caller.cgroup is not None)
        assert caller.cgroup is not None
        less = caller._replace(cgroup=caller.cgroup._replace(**unknown))
    needs = {
        "uid": set(Caller._fields),
        "cgroup": {"unit", "user_unit", "slice", "user_slice", "cgroup", "container"},
        "nested": {"pid_namespace"},
        "unit": {"unit"},
        "user_unit": {"user_unit"},
        "container": {"container"},
        "manager_uid": {"user_unit", "user_slice"},
        "gid": set(),
    }[fact]
    for rule in world.rules.rules:
        if first_mismatch(rule.selector, less) is None:
            assert first_mismatch(rule.selector, caller) is None
            assert fact != "uid"
            assert not needs & {entry.key for entry in rule.selector}


@given(worlds)
def test_the_same_again_is_said_the_same_and_can_be_sent(world: World) -> None:
    packed = msgpack.packb(world.explanation())

    assert packed == msgpack.packb(world.explanation())
