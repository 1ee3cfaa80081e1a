"""Whether a caller gets the token that it asks for: the checks in their order. Values in, values out.

`decide` issues by it and `explain` explains by it, so the two cannot differ.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from gatepass.errors import DeniedError, ErrorCode, TryLaterError
from gatepass.messages import IssueRequest
from gatepass.revocations import locked_error
from gatepass_broker.caller import Caller
from gatepass_broker.policy import Grant, Rule, Terms, agree, find_grant
from gatepass_broker.state import WINDOW, State

CONNECT_AGAIN_SECONDS: Final = 0
"""The client's own shortest delay is long enough for a process to be told from its pid's last owner."""


class Rules(NamedTuple):
    """What the configuration says about tokens."""

    issuer: str
    rules: tuple[Rule, ...]
    default_ttl: int
    source: str | None
    """The file that the rules are in, for people; None for a broker that serves only the user who started it."""
    max_ttl: int = 86_400
    """The longest life in seconds that a rule may grant."""


class UsedUpError(TryLaterError):
    """A user has had as many tokens by a rule as it may have in a minute."""

    def __init__(self, grant: Grant, seconds: int) -> None:
        super().__init__(
            ErrorCode.RATE_LIMITED,
            f"the rule '{grant.rule}' gives {grant.per_minute} tokens a minute to a user, and this one has had them; "
            f"keep a token for its life, as TokenSource does, or ask again in {seconds} s",
            retry_after=seconds,
        )
        self.rule = grant.rule


class Agreed(NamedTuple):
    """A token that may be issued."""

    grant: Grant
    terms: Terms
    uid: int


def judge(  # noqa: PLR0913 - what a decision depends on
    rules: Rules, state: State, caller: Caller, request: IssueRequest, *, exited: bool, time: float
) -> Agreed:
    """Return what `caller` may have at `time` (seconds since the epoch). Raise `DeniedError` or `TryLaterError`."""
    if state.locked:
        raise locked_error()
    if exited:
        raise DeniedError(
            ErrorCode.DENIED, "the process that opened this connection has exited; connect from the process that asks"
        )
    if caller.unsettled:  # also where no rule asks for it: a token without its unit could not be revoked by that
        raise TryLaterError(
            ErrorCode.CONNECT_AGAIN,
            "where your process runs could not be learned for certain yet; connect again",
            retry_after=CONNECT_AGAIN_SECONDS,
        )
    grant = find_grant(rules.rules, caller)
    if grant is None or caller.uid is None:
        raise DeniedError(ErrorCode.DENIED, _no_rule(rules, caller))
    terms = agree(request, grant, rules.default_ttl, caller)
    _check_rate(state, grant, caller.uid, time)
    return Agreed(grant, terms, caller.uid)


def _check_rate(state: State, grant: Grant, uid: int, time: float) -> None:
    """Raise `UsedUpError` if this user has had as many tokens by this rule as it may have in a minute."""
    if grant.per_minute is None:
        return
    bucket = state.issues_in_window(uid, grant.rule, time)
    if bucket is not None and bucket.times >= grant.per_minute:
        raise UsedUpError(grant, int(bucket.since + WINDOW - time) + 1)


def _no_rule(rules: Rules, caller: Caller) -> str:
    if caller.uid is None:
        return "your user is not known in the broker's user namespace, so no rule can match; connect from outside"
    if rules.source is None:
        return (
            f"this broker serves only the user who started it, and not uid {caller.uid}; ask as that user, or set up a "
            "broker for the whole machine (gatepass-broker --config FILE)"
        )
    return (
        f"no rule of the broker matches uid {caller.uid}; 'gatepass explain' says why, and the administrator can add "
        f"a [[rule]] in {rules.source}; log in again if you were added to a group just now"
    )
