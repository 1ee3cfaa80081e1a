"""The parts that all connections share, and the header fields that each way upstream gets to see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gatepass.revocations import locked_error
from gatepass_gateway.authenticator import Authenticator
from gatepass_gateway.headers import Headers, allowed_with_identity, end_to_end
from gatepass_gateway.sessions import Sessions
from gatepass_gateway.shares import Shares
from gatepass_gateway.stopping import Stopping
from gatepass_gateway.trusted_proxy import Client, Identity
from gatepass_gateway.upstream import Upstream


class Deadlines(NamedTuple):
    """Seconds that a client may take; a gateway that thinks, or streams, may take any time."""

    head: float = 10
    """From the first byte of a request, or the end of the one before, to the end of its header."""
    first_frame: float = 3
    """From the upgrade to the end of the first WebSocket message."""
    body: float = 60
    """Between two pieces of a request's body."""
    login: float = 20
    """From the first WebSocket message to the gateway's answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The parts that all connections share. Built once, in `server.py`."""

    authenticator: Authenticator
    upstream: Upstream
    shares: Shares
    sessions: Sessions
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

    def refuse_under_lock(self, client: Client, *, brings_credential: bool) -> None:
        """Raise `DeniedError` (LOCKED) for a local client that would log in by whatever, while nobody may."""
        if brings_credential and not client.is_reverse_proxy and self.authenticator.source.current.standing.locked:
            raise locked_error()

    def headers_upstream(self, headers: Headers, identity: Identity | None) -> Headers:
        """Return the header fields that the gateway gets to see for a request with these fields."""
        if identity is None:
            return self._with_host(end_to_end(headers))
        allowed = allowed_with_identity(
            end_to_end(headers), from_reverse_proxy=identity.token_id is None, extra=self.extra_headers
        )
        policy = self.authenticator.policy
        own = (policy.user_header, policy.scopes_header)  # each once, even if it is a forwarding field
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
        policy = self.authenticator.policy
        fields: Headers = ((policy.user_header, identity.user.encode()),)
        if policy.scopes_header is None or identity.scopes is None:
            return fields
        # Exactly one such field, if need be an empty one: OpenClaw takes a missing one for 'everything'.
        return (*fields, (policy.scopes_header, ",".join(sorted(identity.scopes)).encode("ascii")))
