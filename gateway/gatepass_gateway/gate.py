"""What every connection asks: whose request is this, and may it go on? Built once, in `server.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from gatepass.clock import now
from gatepass.errors import ErrorCode, TokenError
from gatepass_gateway.headers import Headers, allowed_with_identity, end_to_end
from gatepass_gateway.keys import KeySource
from gatepass_gateway.refused import RefusedError
from gatepass_gateway.shares import Shares
from gatepass_gateway.stopping import Stopping
from gatepass_gateway.trusted_proxy import Identity, IdentityPolicy, Request, authenticate
from gatepass_gateway.upstream import Upstream
from gatepass_gateway.verifier import Verifier

_NO_KEYS: Final = "the gateway's proxy has not heard of any key yet: it cannot reach the broker, as its log says"
_NO_KEYS_RETRY_SECONDS: Final = 2


class Deadlines(NamedTuple):
    """Seconds that a client may take; a gateway that thinks, or streams, may take any time."""

    head: float = 10
    """From the first byte of a request, or the end of the one before, to the end of its header."""
    first_frame: float = 3
    """From the upgrade to the end of the first WebSocket message."""
    login: float = 20
    """From the first WebSocket message to the gateway's answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The parts that connections share."""

    audience: str
    policy: IdentityPolicy
    keys: KeySource
    upstream: Upstream
    shares: Shares
    stopping: Stopping
    deadlines: Deadlines
    client_address: bytes = b"192.0.0.8"
    """Sent as `X-Forwarded-For` beside a token's identity: 'no network client' (RFC 7600)."""
    extra_headers: frozenset[bytes] = frozenset()
    """Allowed beside an identity, besides the built-in list."""
    fixed_headers: Headers = ()
    """Added beside an identity: what the gateway requires of its proxy."""
    device_login_uids: frozenset[int] = frozenset()
    """Local users who may log in as operators by a credential that the gateway gave to a device."""

    async def identify(self, request: Request) -> Identity | None:
        """Return whose request it is, or None. Raise `RefusedError` or `TokenError`."""
        try:
            return self._authenticate(request)
        except TokenError as error:
            if error.code is not ErrorCode.TOKEN_UNKNOWN_KEY:
                raise
            # A broker that has just started signs with a key that this proxy may hear of in the next moment.
            if await self.keys.refreshed():
                return self._authenticate(request)
            if self.keys.current.table:
                raise
            raise RefusedError(ErrorCode.UNAVAILABLE, _NO_KEYS, retry_after=_NO_KEYS_RETRY_SECONDS) from None

    def _authenticate(self, request: Request) -> Identity | None:
        verifier = Verifier(self.audience, self.keys.current)
        return authenticate(request, self.policy, lambda token: verifier.verify(token, request.uid, now()))

    def headers_upstream(self, headers: Headers, identity: Identity | None) -> Headers:
        """Return the header fields that the gateway gets to see for a request with these fields."""
        if identity is None:
            return self._with_host(end_to_end(headers))
        allowed = allowed_with_identity(
            end_to_end(headers), from_reverse_proxy=identity.token_id is None, extra=self.extra_headers
        )
        own = (self.policy.user_header, self.policy.scopes_header)  # each once, even if it is a forwarding field
        allowed = tuple(field for field in allowed if field[0] not in own)
        if identity.token_id is None:
            return self._with_host((*allowed, *self._identity_fields(identity)))
        return (
            (b"host", self.upstream.authority),
            (b"x-forwarded-for", self.client_address),
            *allowed,
            *self._identity_fields(identity),
            *self.fixed_headers,
        )

    def _with_host(self, fields: Headers) -> Headers:
        """Add the `Host` that an HTTP/1.0 client may leave out, and that goes with every request upstream."""
        return fields if any(name == b"host" for name, _ in fields) else ((b"host", self.upstream.authority), *fields)

    def _identity_fields(self, identity: Identity) -> Headers:
        fields: Headers = ((self.policy.user_header, identity.user.encode()),)
        if self.policy.scopes_header is None or identity.scopes is None:
            return fields
        # Exactly one such field, if need be an empty one: OpenClaw takes a missing one for 'everything'.
        return (*fields, (self.policy.scopes_header, ",".join(sorted(identity.scopes)).encode("ascii")))
