"""One decision: what is answered, and what is recorded for it."""

from __future__ import annotations

from typing import Any

import pytest

from gatepass.claims import Process
from gatepass.clock import Moment
from gatepass.errors import ErrorCode, GatepassError
from gatepass.frames import MAX_FRAME, encode_frame
from gatepass.messages import (
    Binding,
    ExplainRequest,
    FollowRequest,
    IssueRequest,
    LockRequest,
    Operation,
    RevokeRequest,
    StatusRequest,
    UnlockRequest,
    VerifyRequest,
    WhoamiRequest,
)
from gatepass.revocations import Cut, Revocation, Standing
from gatepass.tokens import b64encode, encode_token, key_table
from gatepass_broker.administer import MAX_VALUE
from gatepass_broker.caller import Caller, Cgroup
from gatepass_broker.decide import decide, follow_message
from gatepass_broker.events import (
    Configured,
    Issued,
    KeyAdded,
    Locked,
    Refused,
    Revoked,
    Started,
    Throttled,
    decode_event,
    encode_event,
)
from gatepass_broker.followers import Followers
from gatepass_broker.inquiry import Decision, Inquiry, Surroundings
from gatepass_broker.judge import Rules
from gatepass_broker.keys import SigningKey, verification_key
from gatepass_broker.policy import Grant, Rule, condition
from gatepass_broker.state import MAX_REVOCATIONS, REFUSALS_PER_MINUTE, State

MOMENT = Moment(1_800_000_000.75, 5_000.5, "f" * 32)
DEREK = Caller(uid=1000, gid=1001, groups=frozenset({27}), pid=4711, process=None)
GRANT = Grant("derek", "derek@example.com", ("openclaw",), ("operator.read",), 600)
RULES = Rules("gatepass:host", (Rule((condition("uid", 1000),), GRANT),), 300, "broker.toml")
ALL = frozenset({"request", "follow", "admin"})


def around(**changes: Any) -> Surroundings:
    return Surroundings("1.0", 3, 2, {}, Followers(), lambda _: False)._replace(**changes)


def inquiry(operation: Operation, **changes: Any) -> Inquiry:
    return Inquiry(operation, DEREK, False, ALL, MOMENT, "A" * 22)._replace(**changes)


def decided(operation: Operation, state: State | None = None, **changes: Any) -> Decision:
    return decide(RULES, state or State(), around(), inquiry(operation, **changes))


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
        iat=1_800_000_000,
        usable_until=5_061,
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
        "caller": {"uid": 1000, "gid": 1001, "groups": [27], "pid": 4711, "unit": None, "cgroup": None},
        "grant": {
            "identity": "derek@example.com",
            "audiences": ["openclaw"],
            "scope": "operator.read",
            "max_ttl": 600,
            "binding": "uid",
            "reconnect": 0,
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
        "locked": False,
        "gateways": 0,
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
        return decide(RULES, state, around(keys=table), inquiry(request, **changes))

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


IN_UNIT = DEREK._replace(
    process=77, cgroup=Cgroup(9, "/system.slice/agent.service/inner", unit="agent.service", unit_id=8)
)


def issued(state: State | None = None, **changes: Any) -> Any:
    decision = decided(changes.pop("request", IssueRequest()), state, **changes)
    assert decision.claims is not None, decision.result
    return decision


class TestBinding:
    @pytest.mark.parametrize(
        ("binding", "cgroup", "process"),
        [("uid", None, None), ("unit", 8, None), ("process", 8, Process(4711, 77))],
    )
    def test_a_token_says_what_it_is_bound_to(self, binding: str, cgroup: int | None, process: Process | None) -> None:
        bound = issued(request=IssueRequest(binding=binding), caller=IN_UNIT).claims.confirmation

        assert (bound.uid, bound.cgroup, bound.process) == (1000, cgroup, process)

    def test_a_token_says_which_unit_acts(self) -> None:
        decision = issued(caller=IN_UNIT)

        assert decision.claims.actors == ("unit:agent.service", "uid:1000")
        assert decision.events[0].unit == "agent.service"

    def test_without_a_unit_a_process_is_bound_to_its_own_cgroup(self) -> None:
        bare = DEREK._replace(cgroup=Cgroup(9, "/somewhere", unit_id=9))

        assert issued(request=IssueRequest(binding="unit"), caller=bare).claims.confirmation.cgroup == 9

    @pytest.mark.parametrize("binding", ["unit", "process"])
    def test_what_is_not_known_cannot_be_bound_to(self, binding: str) -> None:
        assert code(decided(IssueRequest(binding=binding))) is ErrorCode.DENIED

    def test_a_process_that_cannot_yet_be_told_is_asked_to_connect_again(self) -> None:
        """Also where no rule asks for its unit: by that the token could be revoked."""
        decision = decided(IssueRequest(), caller=DEREK._replace(unsettled=True))
        assert code(decision) is ErrorCode.CONNECT_AGAIN
        assert decision.events == ()

    def test_verify_judges_as_a_gateway_would(self) -> None:
        key, state = SigningKey(MOMENT.time, 3600), State()
        state.apply(key.added())
        table = key_table([verification_key(published) for published in state.keys.values()])
        claims = issued(request=IssueRequest(binding="process"), caller=IN_UNIT).claims
        token = VerifyRequest(encode_token(claims, key.protected, key.sign))

        def verified(caller: Caller, *, alive: bool) -> Decision:
            return decide(RULES, state, around(keys=table, is_alive=lambda _: alive), inquiry(token, caller=caller))

        assert isinstance(verified(IN_UNIT, alive=True).result, dict)
        assert code(verified(IN_UNIT, alive=False)) is ErrorCode.TOKEN_PROCESS_ENDED
        assert code(verified(DEREK, alive=True)) is ErrorCode.TOKEN_WRONG_UNIT
        elsewhere = Cgroup(11, "/system.slice/b.service", unit="b.service", unit_id=10)
        assert code(verified(DEREK._replace(cgroup=elsewhere), alive=True)) is ErrorCode.TOKEN_WRONG_UNIT


class TestCuttingOff:
    def apply(self, state: State, decision: Decision) -> Decision:
        for event in decision.events:
            state.apply(event)
        return decision

    def revoke(self, state: State, by: Cut, value: str = "", **changes: Any) -> Decision:
        return self.apply(state, decided(RevokeRequest(by.value, value), state, **changes))

    def test_a_revocation_is_recorded_with_all_it_needs_and_awaits_the_followers(self) -> None:
        state = State()
        self.apply(state, issued(state))
        decision = self.revoke(state, Cut.UID, "1000")

        assert decision.awaits_followers
        assert decision.events == (
            Revoked(
                time=MOMENT.time,
                by=Cut.UID,
                value="1000",
                issued_until=1_800_000_000,
                boottime=5_000,
                needed_until=5_301,
                uid=1000,
            ),
        )
        assert state.standing == Standing(False, (Revocation(Cut.UID, "1000", 1_800_000_000),))

    @pytest.mark.parametrize(
        ("by", "value"),
        [(Cut.UID, "1000"), (Cut.ALL, ""), (Cut.IDENTITY, "derek@example.com"), (Cut.UNIT, "agent.service")],
    )
    def test_it_hits_what_was_issued_before_and_nothing_after(self, by: Cut, value: str) -> None:
        state = State()
        before = self.apply(state, issued(state, caller=IN_UNIT)).claims
        self.revoke(state, by, value)
        after = issued(state, caller=IN_UNIT).claims

        (revocation,) = state.standing.revocations
        assert before is not None
        assert revocation.covers(before)
        assert not revocation.covers(after)
        assert after.issued_at == MOMENT.time // 1 + 1

    def test_a_token_that_it_does_not_mean_keeps_its_time(self) -> None:
        state = State()
        self.revoke(state, Cut.UID, "1001")

        assert issued(state).claims.issued_at == 1_800_000_000

    def test_it_covers_what_was_issued_before_the_clock_was_set_back(self) -> None:
        state = State()
        before = self.apply(state, issued(state)).claims
        past = MOMENT._replace(time=MOMENT.time - 3_600)
        self.revoke(state, Cut.ALL, moment=past)

        assert before is not None
        assert state.standing.revocations[0].covers(before)
        assert not state.standing.revocations[0].covers(issued(state, moment=past).claims)

    def test_it_is_kept_when_no_token_lives_any_more(self) -> None:
        """A session outlives its token, and its gateway may be away."""
        state = State()
        self.revoke(state, Cut.JTI, "first")
        self.revoke(state, Cut.JTI, "second", moment=MOMENT._replace(boottime=MOMENT.boottime + 10**6))

        assert [entry.value for entry in state.standing.revocations] == ["first", "second"]

    def test_too_many_become_one_for_what_is_over_and_keep_what_is_not(self) -> None:
        state = State()
        rules = RULES._replace(rules=(Rule((condition("uid", 1000),), GRANT._replace(reconnect=9_000)),))
        for number in range(MAX_REVOCATIONS):
            self.revoke(state, Cut.JTI, f"old-{number}")
        later = MOMENT._replace(time=MOMENT.time + 100, boottime=MOMENT.boottime + 100)
        self.apply(state, decide(rules, state, around(), inquiry(IssueRequest(), moment=later)))
        after = issued(state, moment=later).claims
        self.revoke(state, Cut.JTI, "new", moment=later)

        assert state.standing.revocations == (
            Revocation(Cut.ALL, "", 1_800_000_000),
            Revocation(Cut.JTI, "new", 1_800_000_100),
        )
        assert not any(revocation.covers(after) for revocation in state.standing.revocations)

    def test_all_that_there_can_be_can_be_told_in_one_frame(self) -> None:
        state = State()
        self.apply(state, issued(state))
        for number in range(MAX_REVOCATIONS):
            self.revoke(state, Cut.IDENTITY, f"{number:03}".ljust(MAX_VALUE, "x"))

        assert len(state.standing.revocations) == MAX_REVOCATIONS
        assert len(encode_frame({"id": 1, "ok": True, **follow_message("x" * 256, state)})) < MAX_FRAME

    @pytest.mark.parametrize(
        ("by", "value"),
        [
            (Cut.UNIT, "openclaw@*.service"),
            (Cut.UNIT, "agents.slice"),
            (Cut.UNIT, "a/b/c.service"),
            (Cut.IDENTITY, "é" * 145),
        ],
    )
    def test_a_revocation_that_can_mean_nothing_is_refused(self, by: Cut, value: str) -> None:
        assert code(decided(RevokeRequest(by.value, value))) is ErrorCode.INVALID_REQUEST

    def test_another_boot_needs_none_of_them_and_stays_locked(self) -> None:
        state = State()
        state.apply(Started(time=1, issuer="x", version="1", pid=1, boot_id="a"))
        self.revoke(state, Cut.ALL)
        self.apply(state, decided(LockRequest(), state))
        state.apply(Started(time=2, issuer="x", version="1", pid=1, boot_id="a"))
        assert len(state.standing.revocations) == 1
        state.apply(Started(time=3, issuer="x", version="1", pid=1, boot_id="b"))
        assert state.standing == Standing(True)

    def test_too_many_become_one_for_all(self) -> None:
        state = State()
        self.apply(state, issued(state))
        for number in range(MAX_REVOCATIONS + 1):
            self.revoke(state, Cut.JTI, f"jti-{number}")

        assert state.standing.revocations == (Revocation(Cut.ALL, "", 1_800_000_000),)

    def test_the_same_again_takes_the_place_of_the_first(self) -> None:
        state = State()
        self.revoke(state, Cut.UID, "1000")
        self.revoke(state, Cut.UID, "1000", moment=MOMENT._replace(time=MOMENT.time + 5))

        assert state.standing.revocations == (Revocation(Cut.UID, "1000", 1_800_000_005),)

    def test_each_change_has_its_number_and_a_lock_under_lock_is_none(self) -> None:
        state = State()
        numbers = [state.generation]
        for operation in (LockRequest(), LockRequest(), UnlockRequest(), UnlockRequest(), RevokeRequest("all")):
            decision = self.apply(state, decided(operation, state))
            assert decision.awaits_followers
            numbers.append(state.generation)
        assert numbers == [0, 1, 1, 2, 2, 3]

    @pytest.mark.parametrize("operation", [IssueRequest(), IssueRequest(audience="other"), VerifyRequest("x.y.z")])
    def test_under_lock_nothing_else_is_said(self, operation: Operation) -> None:
        state = State()
        state.apply(Locked(time=1, uid=0))

        decision = decided(operation, state)
        if isinstance(operation, IssueRequest):
            assert code(decision) is ErrorCode.LOCKED
        assert decision.claims is None

    def test_a_checkpoint_restores_it_all(self) -> None:
        state = State()
        state.apply(KeyAdded(time=1, kid="k", x="x", signs_until=2))
        self.apply(state, issued(state))
        self.revoke(state, Cut.UNIT, "a.service")
        self.apply(state, decided(LockRequest(), state))
        restored = State()
        restored.apply(decode_event(encode_event(state.checkpoint(9, "k"))))

        assert restored.standing == state.standing
        assert (restored.latest_issue, restored.latest_use) == (state.latest_issue, state.latest_use)
        assert restored.generation == state.generation


class TestExplaining:
    @pytest.mark.parametrize("request_", [ExplainRequest(pid=1), ExplainRequest(uid=0)])
    def test_others_take_a_socket_for_administrators(self, request_: ExplainRequest) -> None:
        assert code(decided(request_, allowed=frozenset({"request", "follow"}))) is ErrorCode.OPERATION_NOT_ALLOWED

    def test_oneself_does_not(self) -> None:
        result = decided(ExplainRequest(), allowed=frozenset({"request"})).result
        assert isinstance(result, dict)
        assert result["decision"]["allowed"]

    def test_a_process_that_is_not_there_is_an_error(self) -> None:
        assert code(decided(ExplainRequest(pid=5), subject=None)) is ErrorCode.INVALID_REQUEST

    def test_another_is_judged_by_what_it_is(self) -> None:
        decision = decided(ExplainRequest(pid=5), subject=DEREK._replace(uid=7), exited=True)
        assert isinstance(decision.result, dict)
        assert decision.result["caller"]["uid"] == 7
        assert not decision.result["decision"]["allowed"]
        assert decision.events == ()

    def test_a_grant_can_bind_more_closely(self) -> None:
        rules = RULES._replace(rules=(Rule((condition("uid", 1000),), GRANT._replace(binding=Binding.UNIT)),))
        decision = decide(rules, State(), around(), inquiry(IssueRequest(), caller=IN_UNIT))
        assert decision.claims is not None
        assert decision.claims.confirmation.cgroup == 8
