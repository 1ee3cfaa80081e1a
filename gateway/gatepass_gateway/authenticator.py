"""The trusted-proxy handler joined to its keys and its clock: what a gateway asks about each request.

The proxy asks it, and so can any gateway in Python; `demo/embedded_gateway.py` shows one. Who the client is it learns
from `Clients`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from gatepass.claims import Claims
from gatepass.clock import Moment, now
from gatepass.daemon.cgroups import CgroupTree
from gatepass.daemon.processes import is_alive
from gatepass.errors import ErrorCode, TokenError, TryLaterError
from gatepass.tokens import Presenter
from gatepass_gateway.earlier_logins import EarlierLogins
from gatepass_gateway.keys import TrustSource
from gatepass_gateway.refused import RefusedError
from gatepass_gateway.trusted_proxy import Client, Identity, IdentityPolicy, Request, authenticate
from gatepass_gateway.verifier import Verifier

_NO_KEYS: Final = "the gateway's proxy has not heard of any key yet: it cannot reach the broker, as its log says"
_NO_KEYS_RETRY_SECONDS: Final = 2

_ENDED: Final = (ErrorCode.TOKEN_EXPIRED, ErrorCode.TOKEN_UNKNOWN_KEY)
"""How a token is refused that was good once: its life is over, or even its key has been retired."""


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Says whose a request is. `source.run` has to run meanwhile."""

    audience: str
    policy: IdentityPolicy
    source: TrustSource
    logins: EarlierLogins = field(default_factory=EarlierLogins)
    """Who may log in again by a token that has ended."""
    cgroups: CgroupTree = field(default_factory=CgroupTree.of_this_machine)
    clock: Callable[[], Moment] = now

    async def identify(self, request: Request, *, may_reconnect: bool = False) -> Identity | None:
        """Return whose request it is, or None if it has no identity. Raise `GatepassError`.

        What it returns was so at this moment: no other task has run since. `may_reconnect` is for a login that begins
        a session, as one with the same token did before.
        """
        try:
            return self._identify(request, may_reconnect=may_reconnect)
        except (TokenError, TryLaterError) as error:
            if error.code not in (ErrorCode.TOKEN_UNKNOWN_KEY, ErrorCode.UNAVAILABLE):
                raise
            # A broker that has just started signs with a key that may be heard of in the next moment.
            if await self.source.refreshed():
                return self._identify(request, may_reconnect=may_reconnect)
            if error.code is ErrorCode.UNAVAILABLE or self.source.current.keys.table:
                raise
            raise RefusedError(ErrorCode.UNAVAILABLE, _NO_KEYS, retry_after=_NO_KEYS_RETRY_SECONDS) from None

    def remember(self, secret: str, identity: Identity, client: Client) -> None:
        """Let `client` log in again with the token `secret`, which gave it `identity`, for as long as that allows."""
        if identity.claims is not None and client.cgroup is not None:
            self.logins.remember(secret, identity.claims, client.cgroup, self.clock())

    def _identify(self, request: Request, *, may_reconnect: bool) -> Identity | None:
        reconnects = False

        def verify(token: str) -> Claims:
            nonlocal reconnects
            trust = self.source.current
            verifier = Verifier(self.audience, trust.keys, trust.standing)
            presenter, moment = self._presenter(request.client), self.clock()
            try:
                claims = verifier.verify(token, presenter, moment)
            except TokenError as error:
                earlier = self.logins.find(token, request.client, moment) if may_reconnect else None
                if earlier is None or error.code not in _ENDED:
                    raise
                claims, reconnects = verifier.verify_again(earlier, presenter), True
            self.source.check()
            return claims

        identity = authenticate(request, self.policy, verify)
        return identity._replace(reconnects=True) if identity and reconnects else identity

    def _presenter(self, client: Client) -> Presenter:
        def is_in_cgroup(bound: int) -> bool:
            return client.cgroup is not None and self.cgroups.is_within(client.cgroup, bound)

        return Presenter(client.uid, is_in_cgroup, is_alive)
