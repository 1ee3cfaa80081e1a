"""The broker's decision on one request: values in, a reply and events out. No I/O, no clock, no randomness.

Whoever calls `decide` records the events, applies them to the state, and only then signs and sends the reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from gatepass.claims import BootDeadline, Claims, Confirmation, claims_to_json, join_scope
from gatepass.clock import Moment
from gatepass.errors import DeniedError, ErrorCode, GatepassError, TryLaterError
from gatepass.frames import Message
from gatepass.messages import (
    FollowRequest,
    IssueRequest,
    Operation,
    StatusRequest,
    VerifyRequest,
    WhoamiRequest,
    operation_name,
)
from gatepass.tokens import Expected, VerificationKey, b64decode, check_binding, check_token, jwk
from gatepass_broker.caller import Caller
from gatepass_broker.events import AnyEvent, Issued, Refused, Throttled
from gatepass_broker.policy import Grant, Rule, Terms, agree, find_grant
from gatepass_broker.state import REFUSALS_PER_MINUTE, WINDOW, State

OPERATION_GROUPS: Final[Mapping[type[Operation], str]] = {
    IssueRequest: "request",
    WhoamiRequest: "request",
    StatusRequest: "request",
    VerifyRequest: "request",
    FollowRequest: "follow",
}
"""The group, as a socket's `allow` names it, that an operation belongs to."""

DEFAULT_AUDIENCE: Final = "openclaw"
MAX_REASON: Final = 512
"""Characters of a refusal's reason that are recorded: it may quote what the caller sent."""


class Rules(NamedTuple):
    """What the configuration says about tokens."""

    issuer: str
    rules: tuple[Rule, ...]
    default_ttl: int
    source: str | None
    """The file that the rules are in, for people; None for a broker that serves only the user who started it."""


class Inquiry(NamedTuple):
    """One request with everything that is known about it."""

    operation: Operation
    caller: Caller
    exited: bool
    """Whether the caller's process has ended since it connected."""
    allowed: frozenset[str]
    """Operation groups of the socket that the request came in by."""
    moment: Moment
    token_id: str
    """128 random bits, base64url: the `jti` if a token is issued."""


class Standing(NamedTuple):
    """What the broker knows about itself beyond its state."""

    version: str
    connections: int
    unverified: int
    """Tokens that `verify` refused: counted, not recorded, since anybody may show anything."""
    keys: Mapping[str, VerificationKey]
    """Published keys, from `gatepass.tokens.key_table`."""


class Decision(NamedTuple):
    """What is to be recorded and answered."""

    result: Message | GatepassError
    events: tuple[AnyEvent, ...] = ()
    claims: Claims | None = None
    """What the token says that completes the result."""
    follows: bool = False
    """Whether this connection gets the result again whenever the keys change."""


def decide(rules: Rules, state: State, standing: Standing, inquiry: Inquiry) -> Decision:
    """Return the decision on `inquiry`. Raises nothing: an error is a result."""
    operation = inquiry.operation
    try:
        _check_allowed(inquiry)
        match operation:
            case IssueRequest():
                return _issue(rules, operation, inquiry)
            case WhoamiRequest():
                return Decision(_whoami(rules, inquiry.caller))
            case StatusRequest():
                return Decision(_status(rules, state, standing, inquiry.moment))
            case VerifyRequest():
                return _verify(rules, standing, operation, inquiry)
            case FollowRequest():
                return Decision(key_set(rules.issuer, state), follows=True)
    except DeniedError as error:
        return _refuse(state, inquiry, error)


def key_set(issuer: str, state: State) -> Message:
    """Return the published keys as followers get them."""
    return {"seq": state.generation, "issuer": issuer, "keys": [jwk(b64decode(key.x)) for key in state.keys.values()]}


def _check_allowed(inquiry: Inquiry) -> None:
    if OPERATION_GROUPS[type(inquiry.operation)] not in inquiry.allowed:
        raise DeniedError(
            ErrorCode.OPERATION_NOT_ALLOWED,
            f"'{operation_name(inquiry.operation)}' is not served on this socket; use the broker's socket for "
            f"'{OPERATION_GROUPS[type(inquiry.operation)]}'",
        )


def _issue(rules: Rules, request: IssueRequest, inquiry: Inquiry) -> Decision:
    caller = inquiry.caller
    if inquiry.exited:
        raise DeniedError(
            ErrorCode.DENIED, "the process that opened this connection has exited; connect from the process that asks"
        )
    grant = find_grant(rules.rules, caller)
    if grant is None or caller.uid is None:
        raise DeniedError(ErrorCode.DENIED, _no_rule(rules, caller))
    terms = agree(request, grant, rules.default_ttl)
    claims = _claims(rules.issuer, grant, terms, caller.uid, inquiry)
    return Decision(_issued_result(claims), (_issued(claims, grant, inquiry),), claims)


def _claims(issuer: str, grant: Grant, terms: Terms, uid: int, inquiry: Inquiry) -> Claims:
    issued_at = int(inquiry.moment.time)
    return Claims(
        issuer=issuer,
        subject=grant.identity,
        audience=terms.audience,
        issued_at=issued_at,
        expires_at=issued_at + terms.ttl,
        token_id=inquiry.token_id,
        scope=terms.scope,
        actors=(f"uid:{uid}",),
        confirmation=Confirmation(uid=uid),
        boot=BootDeadline(id=inquiry.moment.boot_id, deadline=int(inquiry.moment.boottime) + terms.ttl),
    )


def _issued(claims: Claims, grant: Grant, inquiry: Inquiry) -> Issued:
    return Issued(
        time=inquiry.moment.time,
        jti=claims.token_id,
        sub=claims.subject,
        aud=claims.audience,
        scope=join_scope(claims.scope),
        exp=claims.expires_at,
        uid=claims.confirmation.uid,
        gid=inquiry.caller.gid,
        pid=inquiry.caller.pid,
        rule=grant.rule,
    )


def _issued_result(claims: Claims) -> Message:
    return {
        "expires_in": claims.lifetime,
        "subject": claims.subject,
        "audience": claims.audience,
        "scope": join_scope(claims.scope),
    }


def _no_rule(rules: Rules, caller: Caller) -> str:
    if caller.uid is None:
        return "your user is not known in the broker's user namespace, so no rule can match; connect from outside"
    if rules.source is None:
        return (
            f"this broker serves only the user who started it, and not uid {caller.uid}; ask as that user, or set up a "
            "broker for the whole machine (gatepass-broker --config FILE)"
        )
    return (
        f"no rule of the broker matches uid {caller.uid}; ask the administrator for a [[rule]] in {rules.source}, "
        "and log in again if you were added to a group just now"
    )


def _whoami(rules: Rules, caller: Caller) -> Message:
    grant = find_grant(rules.rules, caller)
    return {
        "caller": {"uid": caller.uid, "gid": caller.gid, "groups": sorted(caller.groups), "pid": caller.pid},
        "grant": None
        if grant is None
        else {
            "identity": grant.identity,
            "audiences": list(grant.audiences),
            "scope": join_scope(grant.scopes),
            "max_ttl": grant.max_ttl,
        },
        "issuer": rules.issuer,
    }


def _status(rules: Rules, state: State, standing: Standing, moment: Moment) -> Message:
    return {
        "version": standing.version,
        "issuer": rules.issuer,
        "state": "running",
        "started": state.started,
        "uptime": max(0, int(moment.time) - state.started),
        "keys": [
            {"kid": key.kid, "signs_until": key.signs_until, "published_until": key.published_until}
            for key in state.keys.values()
        ],
        "issued": state.issued,
        "refused": state.refused + standing.unverified,
        "connections": standing.connections,
        "configured": state.configured,
    }


def _verify(rules: Rules, standing: Standing, request: VerifyRequest, inquiry: Inquiry) -> Decision:
    expected = Expected(rules.issuer, _audience_here(rules, request, inquiry.caller), inquiry.moment)
    try:
        claims = check_token(request.token, standing.keys, expected)
        check_binding(claims, inquiry.caller.uid)
    except GatepassError as error:
        return Decision(error)
    return Decision({"claims": claims_to_json(claims)})


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


def _too_many(seconds: int) -> TryLaterError:
    return TryLaterError(
        ErrorCode.RATE_LIMITED,
        f"this user was refused more than {REFUSALS_PER_MINUTE} times in a minute; "
        f"the reason stands in the earlier answers; ask again in {seconds} s",
        retry_after=seconds,
    )
