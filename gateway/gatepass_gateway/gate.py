"""The parts that all connections share, and the header fields that each way upstream gets to see."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, NamedTuple

from gatepass.errors import TryLaterError
from gatepass_gateway.authenticator import Authenticator
from gatepass_gateway.headers import Headers, allowed_with_identity, end_to_end, values_of
from gatepass_gateway.sessions import Held, Sessions
from gatepass_gateway.shares import Shares
from gatepass_gateway.stopping import Stopping
from gatepass_gateway.trusted_proxy import Client, Identity
from gatepass_gateway.upstream import Upstream

_NO_CREDENTIALS: Final = frozenset(
    {
        b"accept",
        b"accept-charset",
        b"accept-encoding",
        b"accept-language",
        b"cache-control",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"date",
        b"expect",
        b"host",
        b"if-modified-since",
        b"if-none-match",
        b"keep-alive",
        b"origin",
        b"pragma",
        b"range",
        b"sec-fetch-dest",
        b"sec-fetch-mode",
        b"sec-fetch-site",
        b"sec-fetch-user",
        b"sec-websocket-extensions",
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"upgrade-insecure-requests",
        b"user-agent",
    }
)
"""Fields that no server looks for a credential in. `Referer` may quote a URL, and some read one in a subprotocol."""


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

    def may_log_in_by_itself(self, client: Client, target: bytes, headers: Headers) -> bool:
        """Whether a request that has no identity is a local client's and may carry a credential of the gateway's own.

        Which ones the gateway knows, and where it looks for them, may change: what is not known to be none may be one.
        """
        if client.is_reverse_proxy:
            return False
        return b"?" in target or any(name not in _NO_CREDENTIALS for name, _ in headers)

    async def check_broker(self) -> None:
        """Raise `TryLaterError` (UNAVAILABLE) where the lock may be on unheard of, before a login by a credential of
        the gateway's own. That it is on, `Sessions.hold` says.
        """
        source = self.authenticator.source
        try:
            source.check()
        except TryLaterError:
            await source.refreshed()
            source.check()

    def hold_exchange(
        self, client: Client, headers: Headers, identity: Identity | None, *, by_itself: bool
    ) -> AbstractContextManager[Held]:
        """Hold an exchange with a token's identity, or a credential of the gateway's own, as a session: its answer may
        have no end. Raise `GatepassError` if it is cut off already.
        """
        claims = None if identity is None else identity.claims
        if claims is None and not by_itself:
            return nullcontext(Held())
        calls_itself = b" ".join(values_of(headers, b"user-agent")).decode("latin-1")
        scopes = (identity and identity.scopes) or frozenset()
        session = self.sessions.new_session("http", client, identity, calls_itself=calls_itself, scopes=scopes)
        return self.sessions.hold(session, claims)

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
