"""The trusted-proxy handler joined to its keys and its clock: what a gateway asks about each request.

The proxy asks it, and so can any gateway in Python; `demo/embedded_gateway.py` shows one. Who the client is it learns
from `Clients`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from gatepass.clock import now
from gatepass.errors import ErrorCode, TokenError
from gatepass_gateway.keys import KeySource
from gatepass_gateway.refused import RefusedError
from gatepass_gateway.trusted_proxy import Identity, IdentityPolicy, Request, authenticate
from gatepass_gateway.verifier import Verifier

_NO_KEYS: Final = "the gateway's proxy has not heard of any key yet: it cannot reach the broker, as its log says"
_NO_KEYS_RETRY_SECONDS: Final = 2


class Authenticator(NamedTuple):
    """Says whose a request is. `keys.run` has to run meanwhile."""

    audience: str
    policy: IdentityPolicy
    keys: KeySource

    async def identify(self, request: Request) -> Identity | None:
        """Return whose request it is, or None if it has no identity. Raise `RefusedError` or `TokenError`."""
        try:
            return self._authenticate(request)
        except TokenError as error:
            if error.code is not ErrorCode.TOKEN_UNKNOWN_KEY:
                raise
            # A broker that has just started signs with a key that may be heard of in the next moment.
            if await self.keys.refreshed():
                return self._authenticate(request)
            if self.keys.current.table:
                raise
            raise RefusedError(ErrorCode.UNAVAILABLE, _NO_KEYS, retry_after=_NO_KEYS_RETRY_SECONDS) from None

    def _authenticate(self, request: Request) -> Identity | None:
        verifier = Verifier(self.audience, self.keys.current)
        return authenticate(request, self.policy, lambda token: verifier.verify(token, request.client.uid, now()))
