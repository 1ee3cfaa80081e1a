"""No request, caller, history or moment yields a token outside of the grant of the first matching rule."""

from __future__ import annotations

from fnmatch import fnmatchcase

from hypothesis import given
from hypothesis import strategies as st

from gatepass.claims import Process
from gatepass.clock import Moment
from gatepass.errors import ErrorCode, GatepassError
from gatepass.messages import (
    Binding,
    ExplainRequest,
    FollowRequest,
    IssueRequest,
    LockRequest,
    RevokeRequest,
    StatusRequest,
    UnlockRequest,
    VerifyRequest,
    WhoamiRequest,
)
from gatepass.revocations import Cut
from gatepass_broker.caller import Caller, Cgroup
from gatepass_broker.decide import decide
from gatepass_broker.events import Issued
from gatepass_broker.followers import Followers
from gatepass_broker.inquiry import Inquiry, Surroundings
from gatepass_broker.judge import Rules
from gatepass_broker.policy import Condition, Grant, Rule, condition
from gatepass_broker.state import State

AROUND = Surroundings("1", 0, 0, {}, Followers(), lambda _: False)
UNITS = ["a.service", "b.service", "session-1.scope"]

ids = st.integers(0, 5)
names = st.sampled_from(["a", "b", "c", "A"])
scopes = st.lists(names, max_size=4).map(lambda found: tuple(sorted(set(found))))
grants = st.builds(
    Grant,
    names,
    names,
    st.lists(names, min_size=1, max_size=3).map(tuple),
    scopes,
    st.integers(1, 1_000),
    st.sampled_from([(), ("*",), ("a*",)]),
    st.sampled_from(list(Binding)),
    st.integers(0, 10_000),
    st.none() | st.integers(1, 2),
)


def conditions(key: str, values: st.SearchStrategy[int | str]) -> st.SearchStrategy[Condition]:
    return st.lists(values, max_size=3).map(lambda chosen: condition(key, *chosen))


selectors = st.lists(
    st.one_of(
        conditions("uid", ids), conditions("gid", ids), conditions("unit", st.sampled_from([*UNITS, "*.service"]))
    ),
    max_size=3,
).map(tuple)
rules = st.builds(
    Rules, st.just("gatepass:x"), st.lists(st.builds(Rule, selectors, grants), max_size=4).map(tuple),
    st.integers(1, 1_000), st.just("file"),
)  # fmt: skip
cgroups = st.builds(
    lambda unit, number: Cgroup(number, f"/system.slice/{unit}", unit=unit, unit_id=number),
    st.sampled_from(UNITS),
    st.integers(1, 9),
)
callers = st.builds(
    Caller,
    st.none() | ids,
    st.none() | ids,
    st.frozensets(ids, max_size=3),
    st.none() | ids,
    st.none() | ids,
    st.none() | cgroups,
    st.none() | st.booleans(),
    st.booleans(),
)
issue_requests = st.builds(
    IssueRequest,
    st.none() | names | st.text(max_size=5),
    st.none() | st.lists(names | st.just(""), max_size=4).map(" ".join) | st.text(max_size=5),
    st.none() | st.integers(1, 2**32 - 1),
    st.none() | st.sampled_from([binding.value for binding in Binding]),
)
operations = st.one_of(
    issue_requests,
    st.sampled_from([WhoamiRequest(), StatusRequest(), FollowRequest(), ExplainRequest(), ExplainRequest(uid=1)]),
    st.builds(VerifyRequest, st.text(max_size=50), st.none() | st.text(max_size=5)),
    st.sampled_from([LockRequest(), UnlockRequest()]),
    st.builds(RevokeRequest, st.sampled_from([cut.value for cut in Cut]), st.sampled_from(["", "1", "a.service"])),
)
moments = st.builds(Moment, st.floats(0, 2**40), st.floats(0, 2**30), st.just("f" * 32))
inquiries = st.builds(
    Inquiry,
    operations,
    callers,
    st.booleans(),
    st.frozensets(st.sampled_from(["request", "follow", "admin"])),
    moments,
    st.just("A" * 22),
    st.none() | callers,
)
histories = st.lists(inquiries, max_size=4)


def after(settings: Rules, history: list[Inquiry]) -> State:
    """Return the state once these requests were decided."""
    state = State()
    for inquiry in history:
        for event in decide(settings, state, AROUND, inquiry).events:
            state.apply(event)
    return state


def may_match(rule: Rule, caller: Caller) -> bool:
    """Say it once more in other words: each condition names one of the caller's facts."""
    unit = caller.cgroup.unit if caller.cgroup else None
    facts: dict[str, list[object]] = {
        "uid": [caller.uid],
        "gid": [*caller.groups, caller.gid],
        "unit": [unit],
    }
    holds = (
        any(
            fnmatchcase(str(fact), str(wanted))
            for fact in facts[entry.key]
            if fact is not None
            for wanted in entry.values
        )
        for entry in rule.selector
    )
    return caller.uid is not None and bool(rule.selector) and all(holds)


@given(rules, histories, inquiries)
def test_a_token_never_goes_beyond_the_first_matching_rule(
    settings: Rules, history: list[Inquiry], inquiry: Inquiry
) -> None:
    state = after(settings, history)
    decision = decide(settings, state, AROUND, inquiry)
    if decision.claims is None:
        assert not any(isinstance(event, Issued) for event in decision.events)
        return
    caller = inquiry.caller
    grant = next(rule.grant for rule in settings.rules if may_match(rule, caller))
    claims = decision.claims
    assert isinstance(inquiry.operation, IssueRequest)
    assert "request" in inquiry.allowed
    assert not inquiry.exited
    assert not state.locked
    assert claims.subject == grant.identity
    assert claims.audience in grant.audiences
    assert all(
        scope in grant.scopes or any(fnmatchcase(scope, pattern) for pattern in grant.scope_patterns)
        for scope in claims.scope
    )
    assert 0 < claims.lifetime <= grant.max_ttl
    assert claims.reconnect == grant.reconnect
    assert claims.boot.deadline <= inquiry.moment.boottime + grant.max_ttl
    assert [type(event) for event in decision.events] == [Issued]
    assert not any(revocation.covers(claims) for revocation in state.standing.revocations)


@given(rules, inquiries)
def test_a_token_is_bound_as_closely_as_rule_and_request_demand(settings: Rules, inquiry: Inquiry) -> None:
    decision = decide(settings, State(), AROUND, inquiry)
    if decision.claims is None or not isinstance(inquiry.operation, IssueRequest):
        return
    caller, bound = inquiry.caller, decision.claims.confirmation
    grant = next(rule.grant for rule in settings.rules if may_match(rule, caller))
    demanded = {grant.binding.value, inquiry.operation.binding}
    assert bound.uid == caller.uid
    if demanded & {"unit", "process"} and caller.cgroup is not None:
        assert bound.cgroup == caller.cgroup.unit_id
    if "unit" in demanded:
        assert bound.cgroup is not None
    if "process" in demanded:
        assert caller.pid is not None
        assert caller.process is not None
        assert bound.process == Process(caller.pid, caller.process)


@given(rules, inquiries)
def test_every_refused_issue_is_on_the_record(settings: Rules, inquiry: Inquiry) -> None:
    decision = decide(settings, State(), AROUND, inquiry)

    if isinstance(inquiry.operation, IssueRequest):
        refused = isinstance(decision.result, GatepassError)
        asked_again = refused and decision.result.code is ErrorCode.CONNECT_AGAIN  # type: ignore[union-attr]
        assert len(decision.events) == (0 if asked_again else 1)
        assert refused is (decision.claims is None)


@given(rules, histories)
def test_only_an_administrators_socket_changes_what_is_cut_off(settings: Rules, history: list[Inquiry]) -> None:
    harmless = [entry._replace(allowed=entry.allowed - {"admin"}) for entry in history]
    state = after(settings, harmless)

    assert not state.locked
    assert state.standing.revocations == ()


@given(rules, histories)
def test_a_checkpoint_restores_the_state(settings: Rules, history: list[Inquiry]) -> None:
    state, restored = after(settings, history), State()
    restored.apply(state.checkpoint(1, "kid"))

    assert restored.standing == state.standing
    assert restored.checkpoint(1, "kid") == state.checkpoint(1, "kid")
