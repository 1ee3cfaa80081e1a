"""The policy decides by the first matching rule, and denies what goes beyond it."""

from __future__ import annotations

import pytest

from gatepass.errors import DeniedError, ErrorCode
from gatepass.messages import IssueRequest
from gatepass_broker.caller import Caller
from gatepass_broker.policy import Grant, Rule, Selector, Terms, agree, find_grant

DEREK = Caller(uid=1000, gid=1000, groups=frozenset({27, 100}), pid=4711, process=12345)
GRANT = Grant("derek", "derek@example.com", ("openclaw", "other"), ("operator.read", "operator.write"), 600)


def rule(name: str, selector: Selector) -> Rule:
    return Rule(selector, GRANT._replace(rule=name))


def matching(caller: Caller, *rules: Rule) -> str | None:
    grant = find_grant(rules, caller)
    return None if grant is None else grant.rule


def uids(*values: int) -> tuple[frozenset[int], ...]:
    return (frozenset(values),)


def test_without_rules_nobody_has_a_grant() -> None:
    assert find_grant((), DEREK) is None


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (Selector(uids=uids(1000)), True),
        (Selector(uids=uids(1, 1000)), True),
        (Selector(uids=uids(1001)), False),
        (Selector(gids=uids(1000)), True),
        (Selector(gids=uids(27)), True),
        (Selector(gids=uids(28)), False),
        (Selector(uids=uids(1000), gids=uids(27)), True),
        (Selector(uids=uids(1000), gids=uids(28)), False),
        (Selector(uids=uids(1001), gids=uids(27)), False),
        (Selector(gids=(frozenset({27}), frozenset({100}))), True),
        (Selector(gids=(frozenset({27}), frozenset({28}))), False),
        (Selector(uids=(frozenset(),)), False),
        (Selector(), False),
    ],
)
def test_every_selector_must_match(selector: Selector, expected: bool) -> None:
    assert (matching(DEREK, rule("it", selector)) == "it") is expected


def test_the_first_matching_rule_is_the_only_one() -> None:
    rules = (
        rule("other", Selector(uids=uids(1))),
        rule("a", Selector(gids=uids(27))),
        rule("b", Selector(uids=uids(1000))),
    )

    assert matching(DEREK, *rules) == "a"


def test_an_unknown_uid_has_no_grant_even_by_its_groups() -> None:
    assert matching(DEREK._replace(uid=None), rule("group", Selector(gids=uids(27)))) is None


def test_an_unknown_gid_matches_nothing() -> None:
    nobody = DEREK._replace(gid=None, groups=frozenset())

    assert matching(nobody, rule("group", Selector(gids=uids(1000, 65534)))) is None


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
    ],
)
def test_a_request_within_its_grant(request_: IssueRequest, terms: Terms) -> None:
    assert agree(request_, GRANT, default_ttl=300) == terms


def test_the_default_life_is_never_longer_than_the_grant() -> None:
    assert agree(IssueRequest(), GRANT._replace(max_ttl=60), default_ttl=300).ttl == 60


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
        agree(request_, GRANT, default_ttl=300)

    assert caught.value.code is ErrorCode.DENIED
