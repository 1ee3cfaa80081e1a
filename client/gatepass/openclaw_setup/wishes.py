"""What the two configurations, OpenClaw's and the proxy's, have to agree on: the one source of both."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, Literal, NamedTuple

Way = Literal["front", "redirect"]

DEFAULT_PORT: Final = 18_789
"""Of OpenClaw, where its configuration names none."""
IDENTITY_SOURCE: Final = "127.7.7.7"
"""Where connections that carry an identity come from. Not 127.0.0.1, which is where every local program comes from."""
PROVIDER: Final = "gatepass"
SECRET_ID: Final = "gateway/password"
PASS_ENV: Final = ("HOME", "XDG_RUNTIME_DIR", "OPENCLAW_GATEWAY_PORT")
"""The first two lead to the broker; by the third a helper knows that the gateway itself is asking."""

ADMIN_SCOPE: Final = "operator.admin"
"""Includes all others where OpenClaw checks a method, but not where it caps a session: there it intersects names."""

_RANDOM: Final = re.compile(r".*[0-9a-f]{32}\Z")


class ReverseProxy(NamedTuple):
    """A reverse proxy of this machine that sends the identity header, as `[[reverse_proxy]]` names it."""

    user: str | int
    unit: str | None = None
    """Its systemd unit, where not everything that runs as the user shall count."""


class Wishes(NamedTuple):
    """What somebody wants, with every default filled in."""

    user: str
    """The loopback user."""
    scopes: tuple[str, ...]
    way: Way
    port: int
    """That clients dial."""
    second_port: int
    """Of OpenClaw where the proxy has `port`, of the proxy where OpenClaw keeps it."""
    user_header: str
    launcher: str
    trusted_proxies: tuple[str, ...]
    """Of other machines, which OpenClaw goes on to trust."""
    only_user: bool
    """Whether nobody but those whom `allowUsers` names may come in."""
    broker_socket: str | None = None
    reverse_proxies: tuple[ReverseProxy, ...] = ()
    required_headers: tuple[str, ...] = ()
    """OpenClaw's own `requiredHeaders`, which the proxy has to send."""

    @property
    def openclaw_port(self) -> int:
        """Where OpenClaw listens."""
        return self.second_port if self.way == "front" else self.port

    @property
    def proxy_port(self) -> int:
        """Where the proxy listens."""
        return self.port if self.way == "front" else self.second_port


def is_unguessable(header: str) -> bool:
    """Whether the name of a header holds what looks like 128 random bits."""
    return _RANDOM.match(header) is not None


def covers_loopback(entry: str) -> Literal["no", "only", "also"]:
    """Return whether `trustedProxies` with this address or range trusts local programs, and whom else."""
    try:
        network = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return "no"
    if isinstance(network, ipaddress.IPv6Network):
        return _covers_loopback_6(network)
    loopback = ipaddress.IPv4Network("127.0.0.0/8")
    return _relation(network.overlaps(loopback), network.subnet_of(loopback))


def _covers_loopback_6(network: ipaddress.IPv6Network) -> Literal["no", "only", "also"]:
    own, mapped = ipaddress.IPv6Network("::1/128"), ipaddress.IPv6Network("::ffff:127.0.0.0/104")
    inside = network.subnet_of(own) or network.subnet_of(mapped)
    return _relation(network.overlaps(own) or network.overlaps(mapped), inside)


def _relation(overlaps: bool, inside: bool) -> Literal["no", "only", "also"]:
    if not overlaps:
        return "no"
    return "only" if inside else "also"
