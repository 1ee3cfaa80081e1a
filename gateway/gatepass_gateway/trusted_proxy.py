"""The trusted-proxy handler: whose request is this? One pure function, `authenticate`, in named steps.

The rules are OpenClaw's (its docs, gateway/trusted-proxy-auth), in its order, with one fallback added. A request from
the reverse proxy that carries the identity header is that user's. A request without one is the subject's of its
token if, and only if, the token verifies and is bound to the user that owns the connection. Everything else
has no identity, and nothing that a client writes gives it one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from gatepass.claims import Claims, split_scope
from gatepass.errors import ErrorCode
from gatepass.openclaw import NO_TOKEN_PREFIX
from gatepass_gateway.headers import Headers, canonical_name, is_forwarding, values_of
from gatepass_gateway.no_token import no_token_error
from gatepass_gateway.refused import RefusedError
from gatepass_gateway.secret_shape import is_gatepass_shaped

VerifyToken = Callable[[str], Claims]
"""Returns the claims of a token shown on this connection, or raises `TokenError`."""


class IdentityPolicy(NamedTuple):
    """What the operator configured about identities."""

    user_header: bytes
    """Lower-case name of the header in which the gateway behind expects the user."""
    scopes_header: bytes | None
    """Lower-case name of the header that caps the scopes of a request, where the gateway has one."""
    users: Mapping[str, frozenset[str]]
    """The identities that tokens may bring, each with the widest scopes that it may ever have here."""


class Client(NamedTuple):
    """Who is at the other end of a connection, by the kernel's word. Nothing in a request can claim it."""

    uid: int | None
    """Who owns that end; None if unknown."""
    is_reverse_proxy: bool = False
    """Whether it is a reverse proxy that the operator named, whose identity header counts."""
    cgroup: int | None = None
    """The cgroup (v2) in which that end was made; None if unknown. A user can make any number of them: what users are
    counted or limited by is `account`."""

    @property
    def account(self) -> tuple[int | None, bool]:
        """Whose connection it is, wherever it was made; a reverse proxy is another than its user's other programs."""
        return self.uid, self.is_reverse_proxy


UNKNOWN_CLIENT: Final = Client(None)


class Request(NamedTuple):
    """What decides, whether it came as HTTP or as the first frame of a WebSocket."""

    headers: Headers
    client: Client
    secret: str | None = None
    """The bearer token, or the secret of the connect frame."""
    requested_scopes: frozenset[str] | None = None
    """What a connect frame asks for; None where the protocol does not ask, as in HTTP."""


class Identity(NamedTuple):
    """Whose request it is, and what it may do."""

    user: str
    scopes: frozenset[str] | None
    """The only scopes that the request may have. None leaves that to the reverse proxy that brought the identity."""
    claims: Claims | None
    """What the token says that brought it; None if the reverse proxy did."""
    reconnects: bool = False
    """Whether that token's life is over, and it counts because it logged in here before."""

    @property
    def token_id(self) -> str | None:
        """`jti` of the token that brought it."""
        return None if self.claims is None else self.claims.token_id


def authenticate(request: Request, policy: IdentityPolicy, verify: VerifyToken) -> Identity | None:
    """Return whose request it is, or None if it has no identity. Raise `RefusedError` or `TokenError`."""
    if request.client.is_reverse_proxy:
        return _identity_from_reverse_proxy(request, policy)
    _refuse_forged_headers(request.headers, policy)
    if request.secret is None or not is_gatepass_shaped(request.secret):
        return None
    return _identity_from_token(request, policy, verify)


def _identity_from_reverse_proxy(request: Request, policy: IdentityPolicy) -> Identity | None:
    users = values_of(request.headers, policy.user_header)
    if not users:
        _refuse_as_if_local(request.headers)
        return None
    user = users[0].decode("utf-8", "replace")
    if not _is_exact(request.headers, policy.user_header, users) or not _is_name(user):
        raise RefusedError(
            ErrorCode.IDENTITY_FORGED,
            "the reverse proxy must send the identity header exactly once, in its exact spelling, with one name in "
            "it: have it remove the client's own, in any spelling, before it sets its own",
        )
    if request.secret is not None and is_gatepass_shaped(request.secret):
        raise RefusedError(
            ErrorCode.SECRET_MISPLACED,
            "a gatepass token is for local callers: it does not come through a reverse proxy",
        )
    return Identity(user, _scopes_from_reverse_proxy(request.headers, policy), None)


def _refuse_as_if_local(headers: Headers) -> None:
    """Refuse a request that the reverse proxy passed on without a word of where it comes from."""
    if not any(is_forwarding(canonical_name(name)) for name, _ in headers):
        raise RefusedError(
            ErrorCode.FORWARDED,
            "the reverse proxy sent neither an identity nor X-Forwarded-For: have it set both, or the gateway behind "
            "takes strangers for local callers; a command that runs as the reverse proxy's user cannot log in here",
        )


def _is_exact(headers: Headers, name: bytes, values: list[bytes]) -> bool:
    """Whether a field is there once and in no other spelling: servers differ about those, and clients can add them."""
    return values == [value for key, value in headers if key == name] and len(values) == 1


def _is_name(user: str) -> bool:
    return bool(user) and user == user.strip() and user.isprintable() and "\ufffd" not in user


def _scopes_from_reverse_proxy(headers: Headers, policy: IdentityPolicy) -> frozenset[str] | None:
    values = values_of(headers, policy.scopes_header) if policy.scopes_header else []
    if not values or policy.scopes_header is None:
        return None
    if not _is_exact(headers, policy.scopes_header, values) or not values[0].isascii():
        raise RefusedError(
            ErrorCode.IDENTITY_FORGED,
            "the reverse proxy must send one scopes header or none, in its exact spelling: have it remove the client's "
            "own before it sets its own",
        )
    return frozenset(split_scope(values[0].decode("ascii").replace(",", " ")))


def _refuse_forged_headers(headers: Headers, policy: IdentityPolicy) -> None:
    for name, _ in headers:
        canonical = canonical_name(name)
        if canonical == policy.user_header:
            raise RefusedError(
                ErrorCode.IDENTITY_FORGED,
                "the identity header counts only from the reverse proxy; a local caller needs a token (gatepass "
                "token), and a proxy must run as the user and in the unit that [[reverse_proxy]] names",
            )
        if is_forwarding(canonical):
            raise RefusedError(
                ErrorCode.FORWARDED,
                f"the header '{canonical.decode('ascii', 'replace')}' counts only from the reverse proxy: a local "
                "caller must not send it, and a proxy must be configured here with the user it runs as",
            )


def _identity_from_token(request: Request, policy: IdentityPolicy, verify: VerifyToken) -> Identity:
    assert request.secret is not None  # noqa: S101 - `authenticate` has looked
    if request.secret.startswith(NO_TOKEN_PREFIX):
        raise no_token_error(request.secret)
    if values_of(request.headers, b"origin"):
        raise RefusedError(
            ErrorCode.BROWSER_ORIGIN, "a gatepass token does not work from a browser: log in through the reverse proxy"
        )
    claims = verify(request.secret)
    allowed = policy.users.get(claims.subject)
    if allowed is None:
        raise RefusedError(
            ErrorCode.IDENTITY_UNKNOWN,
            f"the token is good, but the gateway's proxy knows no user '{claims.subject}': add it to [identity.users]",
        )
    scopes = allowed.intersection(claims.scope)
    if request.requested_scopes is not None:
        scopes &= request.requested_scopes
    return Identity(claims.subject, scopes, claims)
