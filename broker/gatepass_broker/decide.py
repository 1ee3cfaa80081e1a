"""The broker's decision on one request: values in, a reply and events out. No I/O, no clock, no randomness.

Whoever calls `decide` records the events, applies them to the state, and only then signs and sends the reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gatepass.claims import UNIT_ACTOR, BootDeadline, Claims, Confirmation, Process, claims_to_json, join_scope
from gatepass.clock import Moment
from gatepass.errors import DeniedError, ErrorCode, GatepassError, TryLaterError
from gatepass.frames import Message
from gatepass.messages import (
    Binding,
    ExplainRequest,
    FollowRequest,
    IssueRequest,
    LeftBehindRequest,
    LockRequest,
    Operation,
    ReportRequest,
    RevokeRequest,
    SessionsRequest,
    StatusRequest,
    UnlockRequest,
    VerifyRequest,
    WhoamiRequest,
    operation_name,
)
from gatepass.revocations import standing_to_wire
from gatepass.tokens import Expected, Presenter, b64decode, check_binding, check_token, jwk
from gatepass_broker.administer import administer
from gatepass_broker.caller import Caller
from gatepass_broker.events import Issued, Refused, Throttled
from gatepass_broker.explain import explain
from gatepass_broker.inquiry import Decision, Inquiry, Surroundings
from gatepass_broker.judge import Agreed, Rules, UsedUpError, judge
from gatepass_broker.policy import can_bind, find_grant
from gatepass_broker.state import REFUSALS_PER_MINUTE, WINDOW, State

OPERATION_GROUPS: Final[Mapping[type[Operation], str]] = {
    IssueRequest: "request",
    ExplainRequest: "request",
    WhoamiRequest: "request",
    StatusRequest: "request",
    VerifyRequest: "request",
    FollowRequest: "follow",
    ReportRequest: "follow",
    SessionsRequest: "admin",
    LeftBehindRequest: "admin",
    RevokeRequest: "admin",
    LockRequest: "admin",
    UnlockRequest: "admin",
}
"""The group, as a socket's `allow` names it, that an operation belongs to. To explain others takes `admin` too."""

DEFAULT_AUDIENCE: Final = "openclaw"
MAX_REASON: Final = 512
"""Characters of a refusal's reason that are recorded: it may quote what the caller sent."""


def decide(  # noqa: C901, PLR0911 - a table of operations
    rules: Rules, state: State, around: Surroundings, inquiry: Inquiry
) -> Decision:
    """Return the decision on `inquiry`. Raises nothing: an error is a result."""
    operation = inquiry.operation
    try:
        _check_allowed(inquiry)
        match operation:
            case IssueRequest():
                return _issue(rules, state, operation, inquiry)
            case ExplainRequest():
                return _explain(rules, state, operation, inquiry)
            case WhoamiRequest():
                return Decision(_whoami(rules, inquiry.caller))
            case StatusRequest():
                return Decision(_status(rules, state, around, inquiry.moment))
            case VerifyRequest():
                return _verify(rules, state, around, operation, inquiry)
            case FollowRequest():
                return Decision(follow_message(rules.issuer, state), follows=True)
            case ReportRequest():
                return Decision({})
            case SessionsRequest() | LeftBehindRequest() | RevokeRequest() | LockRequest() | UnlockRequest():
                return administer(state, around, inquiry, operation)
    except DeniedError as error:
        return _refuse(state, inquiry, error)
    except TryLaterError as error:
        return _put_off(state, inquiry, error)


def follow_message(issuer: str, state: State) -> Message:
    """Return what followers are told: the published keys, and what is cut off."""
    return {
        "seq": state.generation,
        "issuer": issuer,
        "keys": [jwk(b64decode(key.x)) for key in state.keys.values()],
        **standing_to_wire(state.standing),
    }


def _check_allowed(inquiry: Inquiry) -> None:
    group = OPERATION_GROUPS[type(inquiry.operation)]
    if isinstance(inquiry.operation, ExplainRequest) and _is_about_others(inquiry.operation):
        group = "admin"
    if group not in inquiry.allowed:
        raise DeniedError(
            ErrorCode.OPERATION_NOT_ALLOWED,
            f"'{operation_name(inquiry.operation)}' is not served on this socket; "
            f"use the broker's socket for '{group}'",
        )


def _is_about_others(request: ExplainRequest) -> bool:
    return request.pid is not None or request.uid is not None


def _issue(rules: Rules, state: State, request: IssueRequest, inquiry: Inquiry) -> Decision:
    agreed = judge(rules, state, inquiry.caller, request, exited=inquiry.exited, time=inquiry.moment.time)
    claims = _claims(rules.issuer, state, agreed, inquiry)
    return Decision(_issued_result(claims), (_issued(claims, agreed, inquiry),), claims)


def _claims(issuer: str, state: State, agreed: Agreed, inquiry: Inquiry) -> Claims:
    terms, moment = agreed.terms, inquiry.moment
    unit = None if inquiry.caller.cgroup is None else inquiry.caller.cgroup.unit_name
    issued_at = _issued_at(state, agreed, unit, inquiry)
    return Claims(
        issuer=issuer,
        subject=agreed.grant.identity,
        audience=terms.audience,
        issued_at=issued_at,
        expires_at=issued_at + terms.ttl,
        token_id=inquiry.token_id,
        scope=terms.scope,
        actors=(f"uid:{agreed.uid}",) if unit is None else (f"{UNIT_ACTOR}{unit}", f"uid:{agreed.uid}"),
        confirmation=_confirmation(agreed, inquiry.caller),
        boot=BootDeadline(id=moment.boot_id, deadline=int(moment.boottime) + terms.ttl),
        reconnect=agreed.grant.reconnect,
    )


def _issued_at(state: State, agreed: Agreed, unit: str | None, inquiry: Inquiry) -> int:
    """Return `iat`: now, or the first second that no revocation covers, so that none hits what came after it."""
    covered = (
        revocation.issued_until + 1
        for revocation in state.standing.revocations
        if revocation.means(inquiry.token_id, agreed.uid, unit, agreed.grant.identity)
    )
    return max(int(inquiry.moment.time), *covered, 0)


def _confirmation(agreed: Agreed, caller: Caller) -> Confirmation:
    """Return what the token is bound to. `agree` has seen to it that what the binding needs is known."""
    binding = agreed.terms.binding
    bound = Confirmation(uid=agreed.uid)
    if binding is not Binding.UID and caller.cgroup is not None and can_bind(Binding.UNIT, caller):
        bound = bound._replace(cgroup=caller.cgroup.unit_id or caller.cgroup.id)
    if binding is Binding.PROCESS and caller.pid is not None and caller.process is not None:
        bound = bound._replace(process=Process(caller.pid, caller.process))
    return bound


def _issued(claims: Claims, agreed: Agreed, inquiry: Inquiry) -> Issued:
    return Issued(
        time=inquiry.moment.time,
        jti=claims.token_id,
        sub=claims.subject,
        aud=claims.audience,
        scope=join_scope(claims.scope),
        exp=claims.expires_at,
        uid=agreed.uid,
        gid=inquiry.caller.gid,
        pid=inquiry.caller.pid,
        rule=agreed.grant.rule,
        iat=claims.issued_at,
        unit=claims.unit,
        binding=agreed.terms.binding.value,
        usable_until=int(inquiry.moment.boottime) + max(claims.lifetime, claims.reconnect) + 1,
    )


def _issued_result(claims: Claims) -> Message:
    return {
        "expires_in": claims.lifetime,
        "subject": claims.subject,
        "audience": claims.audience,
        "scope": join_scope(claims.scope),
    }


def _explain(rules: Rules, state: State, request: ExplainRequest, inquiry: Inquiry) -> Decision:
    others = _is_about_others(request)
    subject = inquiry.subject if others else inquiry.caller
    if subject is None:
        raise DeniedError(ErrorCode.INVALID_REQUEST, f"there is no process {request.pid}")
    wanted = IssueRequest(request.audience, request.scope, request.ttl, request.binding)
    exited = inquiry.exited and not others
    return Decision(explain(rules, state, subject, wanted, exited=exited, time=inquiry.moment.time, as_admin=others))


def _whoami(rules: Rules, caller: Caller) -> Message:
    grant = find_grant(rules.rules, caller)
    return {
        "caller": {
            "uid": caller.uid,
            "gid": caller.gid,
            "groups": sorted(caller.groups),
            "pid": caller.pid,
            "unit": None if caller.cgroup is None else caller.cgroup.unit_name,
            "cgroup": None if caller.cgroup is None else caller.cgroup.path,
        },
        "grant": None
        if grant is None
        else {
            "identity": grant.identity,
            "audiences": list(grant.audiences),
            "scope": " ".join((*grant.scopes, *grant.scope_patterns)),
            "max_ttl": grant.max_ttl,
            "binding": grant.binding.value,
            "reconnect": grant.reconnect,
        },
        "issuer": rules.issuer,
    }


def _status(rules: Rules, state: State, around: Surroundings, moment: Moment) -> Message:
    return {
        "version": around.version,
        "issuer": rules.issuer,
        "state": "running",
        "started": state.started,
        "uptime": max(0, int(moment.time) - state.started),
        "keys": [
            {"kid": key.kid, "signs_until": key.signs_until, "published_until": key.published_until}
            for key in state.keys.values()
        ],
        "issued": state.issued,
        "refused": state.refused + around.unverified,
        "connections": around.connections,
        "configured": state.configured,
        "locked": state.locked,
        "gateways": len(around.followers),
    }


def _verify(rules: Rules, state: State, around: Surroundings, request: VerifyRequest, inquiry: Inquiry) -> Decision:
    expected = Expected(rules.issuer, _audience_here(rules, request, inquiry.caller), inquiry.moment)
    try:
        claims = check_token(request.token, around.keys, expected)
        check_binding(claims, _presenter(inquiry.caller, around))
        state.standing.check(claims)
    except GatepassError as error:
        return Decision(error)
    return Decision({"claims": claims_to_json(claims)})


def _presenter(caller: Caller, around: Surroundings) -> Presenter:
    """Return the caller as a gateway would see it: in its own cgroup, and in the unit that this lies in."""
    where = () if caller.cgroup is None else (caller.cgroup.id, caller.cgroup.unit_id)
    return Presenter(caller.uid, lambda cgroup: cgroup in where, around.is_alive)


def _audience_here(rules: Rules, request: VerifyRequest, caller: Caller) -> str:
    if request.audience is not None:
        return request.audience
    grant = find_grant(rules.rules, caller)
    return DEFAULT_AUDIENCE if grant is None else grant.audiences[0]


def _refuse(state: State, inquiry: Inquiry, error: DeniedError) -> Decision:
    """Refuse on the record, or, past the limit, put the caller off with one record for all that follow.

    Only requests that would be refused anyway come here: a broken loop of one program costs its user's other
    programs nothing.
    """
    uid, time = inquiry.caller.uid, inquiry.moment.time
    seconds = state.throttled_for(uid, time)
    if seconds:
        return Decision(_too_many(seconds))
    if state.refusals_in_window(uid, time) >= REFUSALS_PER_MINUTE:
        return Decision(_too_many(WINDOW), (Throttled(time=time, uid=uid, until=int(time) + WINDOW),))
    refused = Refused(
        time=time,
        op=operation_name(inquiry.operation),
        code=error.code.value,
        reason=error.message[:MAX_REASON],
        uid=uid,
        pid=inquiry.caller.pid,
    )
    return Decision(error, (refused,))


def _put_off(state: State, inquiry: Inquiry, error: TryLaterError) -> Decision:
    """Ask the caller to come later; on the record once for each minute in which a rule's tokens are used up."""
    uid, time = inquiry.caller.uid, inquiry.moment.time
    if not isinstance(error, UsedUpError) or uid is None:
        return Decision(error)
    bucket = state.issues_in_window(uid, error.rule, time)
    if bucket is not None and bucket.throttled_until:
        return Decision(error)
    until = int(time) + (error.retry_after or 0)
    return Decision(error, (Throttled(time=time, uid=uid, until=until, rule=error.rule),))


def _too_many(seconds: int) -> TryLaterError:
    return TryLaterError(
        ErrorCode.RATE_LIMITED,
        f"this user was refused more than {REFUSALS_PER_MINUTE} times in a minute; "
        f"the reason stands in the earlier answers; ask again in {seconds} s",
        retry_after=seconds,
    )
