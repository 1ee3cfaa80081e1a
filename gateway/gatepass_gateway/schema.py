"""The configuration file's form, table by table: what may stand where, before anything is looked up."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct, field

Port = Annotated[int, Meta(ge=1, le=65_535)]
Id = Annotated[int, Meta(ge=0, le=2**32 - 2)]
"""A uid; 2**32 - 1 means 'none' to the kernel."""
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Seconds = Annotated[float, Meta(gt=0, le=3_600)]


class _Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table in which an unknown key is an error: a misspelt limit must not be no limit."""


class ListenTable(_Table, frozen=True):
    """`[listen]`: where clients connect."""

    port: Port
    """The port that local programs dial."""
    addresses: tuple[Name, ...] = ("127.0.0.1",)
    """Loopback addresses only. Add `"::1"` where clients dial `localhost` and get that first."""


class UpstreamTable(_Table, frozen=True):
    """`[upstream]`: the gateway behind."""

    port: Port
    """The port that the gateway itself listens on."""
    address: Name = "127.0.0.1"
    """In 127.0.0.0/8."""
    user: Name | Id | None = None
    """Who runs it, by name or uid. Default: whoever runs this program."""
    identity_source: Name = "127.7.7.7"
    """The only address in the gateway's `trustedProxies`."""


class IdentityTable(_Table, frozen=True):
    """`[identity]`: who may be who, and how the gateway behind is told."""

    user_header: Name
    """The header that says who it is: to the gateway behind, and from a reverse proxy. Best with 128 random bits in its
    name."""
    users: dict[Name, tuple[str, ...]]
    """Identities that tokens may bring, each with the widest scopes that it may have through this proxy."""
    audience: Name = "openclaw"
    """Tokens for any other audience are refused."""
    scopes_header: str = "x-openclaw-scopes"
    """The header that caps the scopes of a request; `""` for a gateway that has none."""
    client_address: Name = "192.0.0.8"
    """Sent as `X-Forwarded-For` beside a token's identity. The default means 'no network client' (RFC 7600)."""
    extra_headers: tuple[Name, ...] = ()
    """Names of request headers that may pass beside an identity, besides the built-in list."""
    fixed_headers: dict[Name, str] = {}
    """Headers that the gateway demands of its proxy (OpenClaw's `requiredHeaders`), with their values."""


class KeysTable(_Table, frozen=True):
    """`[keys]`: where the broker's keys come from; one of the two, by default the broker's usual socket."""

    broker_socket: Name | None = None
    """The broker's socket. Default: `$GATEPASS_SOCKET`, else a personal broker's if it is there, else
    `/run/gatepass/broker.sock`."""
    jwks_file: Name | None = None
    """A file of public keys, read again whenever it was replaced. Only its owner may be able to write to it."""
    issuer: Name | None = None
    """With `jwks_file`: accept tokens of this issuer only."""
    broker_absence_seconds: Annotated[int, Meta(ge=0, le=604_800)] = 3_600
    """For how long the proxy goes on with what the broker said last, when it has lost it. Then nobody local logs in
    until the broker is back; who is logged in stays. With `jwks_file` this means nothing: a file tells of no lock and
    no revocations."""


class SessionsTable(_Table, frozen=True):
    """`[sessions]`: what local callers have open."""

    state_dir: Name | None = None
    """Where logins are remembered over a restart of the proxy, by digests of their tokens, so that clients can
    reconnect as the broker's rules allow (`reconnect`). Default: `$RUNTIME_DIRECTORY`, which systemd sets, else a
    person's `$XDG_RUNTIME_DIR/gatepass` if it is there, else nowhere: then a restart ends that."""


class ReverseProxyTable(_Table, frozen=True):
    """`[[reverse_proxy]]`: a local reverse proxy whose identity header counts."""

    user: Name | Id
    """The user it runs as, by name or uid. Without `unit` no local client may run as the same user."""
    unit: Name | None = None
    """The system manager's unit it runs in, such as `"nginx.service"`. What else runs as the user is a local client."""


class DeviceLoginsTable(_Table, frozen=True):
    """`[device_logins]`: local users who may log in as operators by a credential that OpenClaw gave to a device."""

    users: tuple[Name | Id, ...] = ()
    """By name or uid."""


class RedirectTable(_Table, frozen=True):
    """`[redirect]`: for `gatepass-redirect`, by which the gateway keeps the port that local programs dial, and the
    kernel leads them from there to the proxy.
    """

    proxy_user: Name | Id = "gatepass-gateway"
    """Who the proxy runs as, by name or uid: the only local user whom the kernel lets through to the gateway. Nothing
    else may run as this user."""
    allow_from: tuple[Name, ...] = ()
    """Addresses and networks (CIDR) of other machines that may dial the gateway's port: a reverse proxy's. All others,
    containers among them, find it closed."""


NO_REDIRECT: Final = RedirectTable()
"""Stands for a table that is not there: an empty one is another."""


class LimitsTable(_Table, frozen=True):
    """`[limits]`."""

    connections: Annotated[int, Meta(ge=1, le=100_000)] = 512
    """Open connections in all."""
    connections_per_uid: Annotated[int, Meta(ge=1, le=100_000)] = 128
    """Open connections of one user."""
    waiting: Annotated[int, Meta(ge=1, le=100_000)] = 24
    """WebSockets without a login; OpenClaw itself stops at 32."""
    waiting_per_uid: Annotated[int, Meta(ge=1, le=100_000)] = 6
    """Of one user; less than `waiting`."""
    head_seconds: Seconds = 10
    """For the header of a request to be complete."""
    first_frame_seconds: Seconds = 3
    """From the WebSocket's upgrade to the end of its first message."""
    body_seconds: Seconds = 60
    """Between two pieces of a request's body."""
    login_seconds: Seconds = 20
    """From that message to the gateway's answer."""


class File(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    listen: ListenTable
    upstream: UpstreamTable
    identity: IdentityTable
    keys: KeysTable = field(default_factory=KeysTable)
    sessions: SessionsTable = field(default_factory=SessionsTable)
    reverse_proxy: tuple[ReverseProxyTable, ...] = ()
    device_logins: DeviceLoginsTable = field(default_factory=DeviceLoginsTable)
    limits: LimitsTable = field(default_factory=LimitsTable)
    redirect: RedirectTable = field(default_factory=lambda: NO_REDIRECT)
