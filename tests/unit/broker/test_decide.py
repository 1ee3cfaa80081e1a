"""One decision: what is answered, and what is recorded for it."""

from __future__ import annotations

from typing import Any

import pytest

from gatepass.clock import Moment
from gatepass.errors import ErrorCode, GatepassError
from gatepass.messages import FollowRequest, IssueRequest, Operation, StatusRequest, VerifyRequest, WhoamiRequest
from gatepass.tokens import b64encode, encode_token, key_table
from gatepass_broker.caller import Caller
from gatepass_broker.decide import Decision, Inquiry, Rules, Standing, decide
from gatepass_broker.events import Configured, Issued, Refused, Started, Throttled
from gatepass_broker.keys import SigningKey, verification_key
from gatepass_broker.policy import Grant, Rule, Selector
from gatepass_broker.state import REFUSALS_PER_MINUTE, State

MOMENT = Moment(1_800_000_000.75, 5_000.5, "f" * 32)
DEREK = Caller(uid=1000, gid=1001, groups=frozenset({27}), pid=4711, process=None)
GRANT = Grant("derek", "derek@example.com", ("openclaw",), ("operator.read",), 600)
RULES = Rules("gatepass:host", (Rule(Selector(uids=(frozenset({1000}),)), GRANT),), 300, "broker.toml")
ALL = frozenset({"request", "follow", "admin"})


def standing(**changes: Any) -> Standing:
    return Standing("1.0", 3, 2, {})._replace(**changes)


def inquiry(operation: Operation, **changes: Any) -> Inquiry:
    return Inquiry(operation, DEREK, False, ALL, MOMENT, "A" * 22)._replace(**changes)


def decided(operation: Operation, state: State | None = None, **changes: Any) -> Decision:
    return decide(RULES, state or State(), standing(), inquiry(operation, **changes))


def code(decision: Decision) -> ErrorCode:
    assert isinstance(decision.result, GatepassError)
    return decision.result.code


def test_issue_says_who_for_whom_and_how_long() -> None:
    decision = decided(IssueRequest())

    assert decision.result == {
        "expires_in": 300,
        "subject": "derek@example.com",
        "audience": "openclaw",
        "scope": "operator.read",
    }
    claims = decision.claims
    assert claims is not None
    assert (claims.issued_at, claims.expires_at) == (1_800_000_000, 1_800_000_300)
    assert (claims.boot.id, claims.boot.deadline) == ("f" * 32, 5_300)
    assert (claims.subject, claims.actors, claims.confirmation.uid) == ("derek@example.com", ("uid:1000",), 1000)


def test_issue_is_recorded_with_everything_an_auditor_asks_for() -> None:
    (event,) = decided(IssueRequest(ttl=60)).events

    assert event == Issued(
        time=MOMENT.time,
        jti="A" * 22,
        sub="derek@example.com",
        aud="openclaw",
        scope="operator.read",
        exp=1_800_000_060,
        uid=1000,
        gid=1001,
        pid=4711,
        rule="derek",
    )


@pytest.mark.parametrize(
    ("operation", "changes", "reason"),
    [
        (IssueRequest(), {"caller": DEREK._replace(uid=1001)}, "no rule of the broker matches uid 1001"),
        (IssueRequest(), {"caller": DEREK._replace(uid=None)}, "not known in the broker's user namespace"),
        (IssueRequest(), {"exited": True}, "the process that opened this connection has exited"),
        (IssueRequest(ttl=601), {}, "at most 600 s"),
        (IssueRequest(audience="other"), {}, "audience 'other'"),
    ],
)
def test_a_refusal_has_a_reason_is_recorded_and_comes_without_a_token(
    operation: Operation, changes: dict[str, Any], reason: str
) -> None:
    decision = decided(operation, **changes)

    assert isinstance(decision.result, GatepassError)
    assert decision.result.code is ErrorCode.DENIED
    assert reason in decision.result.message
    assert decision.claims is None
    (event,) = decision.events
    assert isinstance(event, Refused)
    assert (event.op, event.code) == ("issue", "denied")
    assert reason in event.reason


def test_a_refusal_names_the_cure_and_no_other_rules() -> None:
    decision = decided(IssueRequest(), caller=DEREK._replace(uid=1001))

    assert isinstance(decision.result, GatepassError)
    assert "[[rule]] in broker.toml" in decision.result.message
    assert "derek" not in decision.result.message


@pytest.mark.parametrize("operation", [IssueRequest(), WhoamiRequest(), StatusRequest(), VerifyRequest("x")])
def test_a_socket_for_followers_serves_nothing_else(operation: Operation) -> None:
    decision = decided(operation, allowed=frozenset({"follow"}))

    assert code(decision) is ErrorCode.OPERATION_NOT_ALLOWED
    assert len(decision.events) == 1


def test_a_socket_for_requests_has_no_followers() -> None:
    decision = decided(FollowRequest(), allowed=frozenset({"request"}))

    assert code(decision) is ErrorCode.OPERATION_NOT_ALLOWED
    assert not decision.follows


def test_whoami_shows_the_caller_and_its_grant() -> None:
    assert decided(WhoamiRequest()).result == {
        "caller": {"uid": 1000, "gid": 1001, "groups": [27], "pid": 4711},
        "grant": {
            "identity": "derek@example.com",
            "audiences": ["openclaw"],
            "scope": "operator.read",
            "max_ttl": 600,
        },
        "issuer": "gatepass:host",
    }


def test_whoami_of_somebody_without_a_rule_is_no_error() -> None:
    result = decided(WhoamiRequest(), caller=DEREK._replace(uid=7)).result

    assert isinstance(result, dict)
    assert result["grant"] is None


def test_status_has_integers_only() -> None:
    state = State()
    state.apply(Started(time=1_799_999_990.5, issuer="x", version="1", pid=1))
    state.apply(Configured(time=1_799_999_995.5, digest="x", rules=1))
    key = SigningKey(MOMENT.time, 3600)
    state.apply(key.added())

    assert decided(StatusRequest(), state).result == {
        "version": "1.0",
        "issuer": "gatepass:host",
        "state": "running",
        "started": 1_799_999_990,
        "uptime": 10,
        "keys": [{"kid": key.kid, "signs_until": 1_800_003_600, "published_until": None}],
        "issued": 0,
        "refused": 2,
        "connections": 3,
        "configured": 1_799_999_995,
    }


def test_follow_gets_the_keys_and_goes_on() -> None:
    state = State()
    state.apply(SigningKey(MOMENT.time, 3600).added())
    decision = decided(FollowRequest(), state)

    assert decision.follows
    assert isinstance(decision.result, dict)
    assert decision.result["seq"] == 1
    assert [key["kid"] for key in decision.result["keys"]] == list(state.keys)


class TestVerify:
    @pytest.fixture
    def key(self) -> SigningKey:
        return SigningKey(MOMENT.time, 3600)

    def verify(self, key: SigningKey, request: VerifyRequest, **changes: Any) -> Decision:
        state = State()
        state.apply(key.added())
        table = key_table([verification_key(published) for published in state.keys.values()])
        return decide(RULES, state, standing(keys=table), inquiry(request, **changes))

    def token(self, key: SigningKey, **claims: Any) -> str:
        issued = decided(IssueRequest()).claims
        assert issued is not None
        return encode_token(issued._replace(**claims), key.protected, key.sign)

    def test_a_good_token_shows_its_claims(self, key: SigningKey) -> None:
        result = self.verify(key, VerifyRequest(self.token(key))).result

        assert isinstance(result, dict)
        assert result["claims"]["sub"] == "derek@example.com"

    @pytest.mark.parametrize(
        ("claims", "changes", "expected"),
        [
            ({}, {"caller": DEREK._replace(uid=1001)}, ErrorCode.TOKEN_WRONG_UID),
            ({}, {"caller": DEREK._replace(uid=None)}, ErrorCode.TOKEN_WRONG_UID),
            ({"audience": "other"}, {}, ErrorCode.TOKEN_WRONG_AUDIENCE),
            ({"issuer": "gatepass:elsewhere"}, {}, ErrorCode.TOKEN_WRONG_ISSUER),
            ({}, {"moment": MOMENT._replace(time=MOMENT.time + 301)}, ErrorCode.TOKEN_EXPIRED),
            ({}, {"moment": MOMENT._replace(boot_id="0" * 32)}, ErrorCode.TOKEN_WRONG_BOOT),
        ],
    )
    def test_a_bad_token_has_its_code_and_no_record(
        self, key: SigningKey, claims: dict[str, Any], changes: dict[str, Any], expected: ErrorCode
    ) -> None:
        decision = self.verify(key, VerifyRequest(self.token(key, **claims)), **changes)

        assert code(decision) is expected
        assert decision.events == ()

    def test_a_token_of_another_key_is_unknown(self, key: SigningKey) -> None:
        foreign = SigningKey(MOMENT.time, 3600)

        assert code(self.verify(key, VerifyRequest(self.token(foreign)))) is ErrorCode.TOKEN_UNKNOWN_KEY

    def test_the_audience_can_be_said(self, key: SigningKey) -> None:
        request = VerifyRequest(self.token(key, audience="other"), audience="other")

        assert isinstance(self.verify(key, request).result, dict)


class TestThrottling:
    DENIED = IssueRequest(ttl=601)

    def refuse(self, state: State, times: int, *, after: float = 0) -> list[Decision]:
        moment = MOMENT._replace(time=MOMENT.time + after)
        decisions = []
        for _ in range(times):
            decisions.append(decided(self.DENIED, state, moment=moment))
            for event in decisions[-1].events:
                state.apply(event)
        return decisions

    def test_the_journal_gets_a_bounded_number_of_refusals(self) -> None:
        state = State()
        events = [event for decision in self.refuse(state, 1000) for event in decision.events]

        assert len(events) == REFUSALS_PER_MINUTE + 1
        assert isinstance(events[-1], Throttled)

    def test_the_caller_is_put_off_with_a_time(self) -> None:
        last = self.refuse(State(), REFUSALS_PER_MINUTE + 1)[-1]

        assert code(last) is ErrorCode.RATE_LIMITED
        assert isinstance(last.result, GatepassError)
        assert last.result.retry_after == 60

    def test_what_is_granted_is_still_granted(self) -> None:
        state = State()
        self.refuse(state, 100)

        assert decided(IssueRequest(), state).claims is not None

    def test_other_users_are_refused_on_the_record_as_before(self) -> None:
        state = State()
        self.refuse(state, 100)

        assert code(decided(IssueRequest(), state, caller=DEREK._replace(uid=7))) is ErrorCode.DENIED

    def test_it_ends(self) -> None:
        state = State()
        self.refuse(state, 100)

        (after,) = self.refuse(state, 1, after=62)
        assert code(after) is ErrorCode.DENIED

    def test_a_clock_that_steps_back_does_not_make_it_last(self) -> None:
        state = State()
        self.refuse(state, 100)

        (after,) = self.refuse(state, 1, after=-3600)
        assert code(after) is ErrorCode.DENIED

    def test_a_thousand_users_are_remembered_and_no_more(self) -> None:
        state = State()
        for uid in range(5_000):
            for event in decided(IssueRequest(), state, caller=DEREK._replace(uid=uid + 2000)).events:
                state.apply(event)

        assert len(state.refusals) <= 1_024


def test_a_reason_that_quotes_the_caller_is_cut_in_the_record() -> None:
    (event,) = decided(IssueRequest(audience="x" * 4_000)).events

    assert isinstance(event, Refused)
    assert len(event.reason) <= 512


def test_a_token_id_is_the_one_given() -> None:
    claims = decided(IssueRequest(), token_id=b64encode(b"\1" * 16)).claims

    assert claims is not None
    assert claims.token_id == b64encode(b"\1" * 16)
