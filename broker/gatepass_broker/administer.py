"""What administrators ask of the broker: who is in, and to cut off whom. Values in, a reply and events out; no I/O."""

from __future__ import annotations

from typing import Final

from gatepass.errors import DeniedError, ErrorCode
from gatepass.messages import LeftBehindRequest, LockRequest, RevokeRequest, SessionsRequest, UnlockRequest
from gatepass.revocations import Cut
from gatepass_broker.events import Locked, Revoked, Unlocked
from gatepass_broker.followers import left_behind_to_wire, sessions_to_wire
from gatepass_broker.inquiry import Decision, Inquiry, Surroundings
from gatepass_broker.names import is_literal_unit
from gatepass_broker.state import State

MAX_VALUE: Final = 288
"""Bytes of what a revocation names: a unit of a person's own manager is the longest. All that there can be go into one
frame."""

Administration = SessionsRequest | LeftBehindRequest | RevokeRequest | LockRequest | UnlockRequest


def administer(state: State, around: Surroundings, inquiry: Inquiry, request: Administration) -> Decision:
    """Return the decision on `request`. Raise `DeniedError`."""
    time, uid = inquiry.moment.time, inquiry.caller.uid
    match request:
        case SessionsRequest():
            return Decision(sessions_to_wire(around.followers, state.generation))
        case LeftBehindRequest():
            return Decision(left_behind_to_wire(state.left_behind))
        case RevokeRequest():
            return Decision({}, (_revocation(state, request, inquiry),), awaits_followers=True)
        case LockRequest():
            return Decision({}, () if state.locked else (Locked(time=time, uid=uid),), awaits_followers=True)
        case UnlockRequest():
            return Decision({}, (Unlocked(time=time, uid=uid),) if state.locked else (), awaits_followers=True)


def _revocation(state: State, request: RevokeRequest, inquiry: Inquiry) -> Revoked:
    if not _says_what(request):
        raise DeniedError(
            ErrorCode.INVALID_REQUEST,
            "say what is to be revoked: a jti, a uid in decimal, a unit's name or an identity; for 'all' nothing more",
        )
    now = int(inquiry.moment.boottime)
    return Revoked(
        time=inquiry.moment.time,
        by=Cut(request.by),
        value=request.value,
        issued_until=state.issued_until(inquiry.moment.time),
        boottime=now,
        needed_until=max(now, state.latest_use, now + state.latest_end - int(inquiry.moment.time)),
        uid=inquiry.caller.uid,
    )


def _says_what(request: RevokeRequest) -> bool:
    """Whether it chooses tokens in the form in which they name things: a choice of none would look like success."""
    by, value = request
    if len(value.encode()) > MAX_VALUE:
        return False
    if by == Cut.UID:
        return value.isascii() and value.isdecimal() and str(int(value)) == value
    if by == Cut.UNIT:
        return value.count("/") <= 1 and all(map(is_literal_unit, value.split("/")))
    return by in list(Cut) and (by == Cut.ALL) == (value == "")
