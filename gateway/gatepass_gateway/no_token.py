"""What `gatepass openclaw secret` answered where it had no token: `gatepass-none.<code>.<random>`. Pure."""

from __future__ import annotations

from typing import Final

from gatepass.errors import ErrorCode
from gatepass.openclaw import ASKED_BY_CHECK, ASKED_BY_GATEWAY, NO_TOKEN_PREFIX
from gatepass_gateway.refused import RefusedError

_LATER: Final = {
    ErrorCode.UNREACHABLE: "the gatepass broker was not running: start it, then try again",
    ErrorCode.TIMEOUT: "the gatepass broker did not answer in time: see its log, then try again",
    ErrorCode.UNAVAILABLE: "the gatepass broker cannot issue tokens now: see 'gatepass status', then try again",
    ErrorCode.RATE_LIMITED: "the gatepass broker was asked too often: wait a minute, then try again",
    ErrorCode.CONNECT_AGAIN: "the gatepass broker could not be certain yet which process asked: try again",
}
_NOT_LATER: Final = {
    ErrorCode.PERMISSION: "this user may not open the gatepass broker's socket: 'gatepass whoami' says what to do",
    ErrorCode.DENIED: "the gatepass broker grants this user nothing of the kind: 'gatepass token' says why",
    ErrorCode.LOCKED: "an administrator has locked gatepass: nobody logs in until 'gatepass unlock'",
    ErrorCode.IMPOSTOR: "what listens on the gatepass broker's socket is not the broker: see 'gatepass status'",
    ASKED_BY_CHECK: "this is what 'gatepass openclaw check' asks with, to see who answers",
    ASKED_BY_GATEWAY: "this is the gateway's own placeholder password, which logs nobody in; 'openclaw status' gets it "
    "too, and 'openclaw gateway status' where OpenClaw is a service, 'openclaw cron list' does not",
}
_RETRY_SECONDS: Final = 1


def no_token_error(secret: str) -> RefusedError:
    """Return the refusal for `secret`, which begins with `NO_TOKEN_PREFIX`: its code as a sentence with a cure."""
    code = secret.removeprefix(NO_TOKEN_PREFIX).partition(".")[0]
    for reasons, retry_after in ((_LATER, _RETRY_SECONDS), (_NOT_LATER, None)):
        for known, reason in reasons.items():
            if known == code:
                return RefusedError(ErrorCode.NO_TOKEN, f"no token was issued, {reason}", retry_after=retry_after)
    return RefusedError(ErrorCode.NO_TOKEN, "no token was issued, 'gatepass openclaw check' says why")
