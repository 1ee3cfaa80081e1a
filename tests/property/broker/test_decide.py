"""No request, caller or moment yields a token outside of the grant of the first matching rule."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gatepass.clock import Moment
from gatepass.errors import GatepassError
from gatepass.messages import FollowRequest, IssueRequest, StatusRequest, VerifyRequest, WhoamiRequest
from gatepass_broker.caller import Caller
from gatepass_broker.decide import Inquiry, Rules, Standing, decide
from gatepass_broker.events import Issued
from gatepass_broker.policy import Grant, Rule, Selector
from gatepass_broker.state import State

ids = st.integers(0, 5)
id_sets = st.frozensets(ids, max_size=3)
names = st.sampled_from(["a", "b", "c", "A"])
scopes = st.lists(names, max_size=4).map(lambda found: tuple(sorted(set(found))))
grants = st.builds(
    Grant, names, names, st.lists(names, min_size=1, max_size=3).map(tuple), scopes, st.integers(1, 1_000)
)
selectors = st.builds(Selector, st.lists(id_sets, max_size=2).map(tuple), st.lists(id_sets, max_size=2).map(tuple))
rules = st.builds(
    Rules, st.just("gatepass:x"), st.lists(st.builds(Rule, selectors, grants), max_size=4).map(tuple),
    st.integers(1, 1_000), st.just("file"),
)  # fmt: skip
callers = st.builds(Caller, st.none() | ids, st.none() | ids, id_sets, st.none() | ids, st.none())
issue_requests = st.builds(
    IssueRequest,
    st.none() | names | st.text(max_size=5),
    st.none() | st.lists(names | st.just(""), max_size=4).map(" ".join) | st.text(max_size=5),
    st.none() | st.integers(1, 2**32 - 1),
)
operations = st.one_of(
    issue_requests,
    st.sampled_from([WhoamiRequest(), StatusRequest(), FollowRequest()]),
    st.builds(VerifyRequest, st.text(max_size=50), st.none() | st.text(max_size=5)),
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
)


def may_match(rule: Rule, caller: Caller) -> bool:
    """Say it once more in other words: every set that the rule names holds one of the caller's ids."""
    groups = {*caller.groups, caller.gid} - {None}
    sets = [({caller.uid}, wanted) for wanted in rule.selector.uids] + [
        (groups, wanted) for wanted in rule.selector.gids
    ]
    return caller.uid is not None and bool(sets) and all(mine & wanted for mine, wanted in sets)


@given(rules, inquiries)
def test_a_token_never_goes_beyond_the_first_matching_rule(settings: Rules, inquiry: Inquiry) -> None:
    decision = decide(settings, State(), Standing("1", 0, 0, {}), inquiry)
    if decision.claims is None:
        assert not any(isinstance(event, Issued) for event in decision.events)
        return
    grant = next(rule.grant for rule in settings.rules if may_match(rule, inquiry.caller))
    claims = decision.claims
    assert isinstance(inquiry.operation, IssueRequest)
    assert "request" in inquiry.allowed
    assert not inquiry.exited
    assert claims.subject == grant.identity
    assert claims.audience in grant.audiences
    assert set(claims.scope) <= set(grant.scopes)
    assert 0 < claims.lifetime <= grant.max_ttl
    assert claims.confirmation.uid == inquiry.caller.uid
    assert claims.boot.deadline <= inquiry.moment.boottime + grant.max_ttl
    assert [type(event) for event in decision.events] == [Issued]


@given(rules, inquiries)
def test_every_refused_issue_is_on_the_record(settings: Rules, inquiry: Inquiry) -> None:
    decision = decide(settings, State(), Standing("1", 0, 0, {}), inquiry)

    if isinstance(inquiry.operation, IssueRequest):
        assert len(decision.events) == 1
        assert isinstance(decision.result, GatepassError) is (decision.claims is None)
