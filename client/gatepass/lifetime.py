"""The token that a source holds, and when it must be renewed: a value machine, shared by threads and tasks. No I/O.

Life is measured on CLOCK_BOOTTIME from before the request was sent: that clock is never stepped, counts while the
machine is suspended, and the token lives at least until what is computed here.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from gatepass.errors import DeniedError, GatepassError
from gatepass.messages import IssuedToken

REFRESH_AT: Final = 0.8
"""Share of its life after which a token is renewed: what remains is for a broker that is down."""

RETRY_AFTER: Final = 0.05
"""Share of a token's life between two attempts to renew it: four attempts before it ends."""


class _Held(NamedTuple):
    token: str
    lifetime: float
    refresh_at: float
    expires_at: float


class Lifetime:
    """At most one token. Every `now` is a reading of CLOCK_BOOTTIME in seconds."""

    def __init__(self) -> None:
        self._held: _Held | None = None

    def fresh(self, now: float) -> str | None:
        """Return the token if it need not be renewed yet."""
        held = self._held
        return held.token if held is not None and now < held.refresh_at else None

    def alive(self, now: float) -> str | None:
        """Return the token if it has not expired."""
        held = self._held
        return held.token if held is not None and now < held.expires_at else None

    def due_in(self, now: float) -> float:
        """Return the seconds until the token should be renewed; 0 if it should be now."""
        return 0.0 if self._held is None else max(0.0, self._held.refresh_at - now)

    def renewed(self, issued: IssuedToken, asked_at: float) -> None:
        """Hold `issued`, which was asked for at `asked_at`."""
        lifetime = issued.expires_in
        self._held = _Held(issued.token, lifetime, asked_at + REFRESH_AT * lifetime, asked_at + lifetime)

    def failed(self, error: GatepassError, now: float) -> str | None:
        """Note that renewing failed, and return the token to go on with, if there is one.

        A denial is the broker's decision about this caller as it is now, so the old token is forgotten: using up what
        is left of its life would only hide the decision for a minute.
        """
        if isinstance(error, DeniedError):
            self._held = None
        token = self.alive(now)
        if self._held is not None and token is not None:
            pause = max(RETRY_AFTER * self._held.lifetime, error.retry_after or 0)
            self._held = self._held._replace(refresh_at=min(now + pause, self._held.expires_at))
        return token

    def forget(self, token: str | None) -> None:
        """Drop the token if it is `token`, or whichever it is if that is None."""
        if self._held is not None and token in (None, self._held.token):
            self._held = None
