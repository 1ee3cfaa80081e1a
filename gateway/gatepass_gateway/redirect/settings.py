"""Reading `[redirect]` in the proxy's configuration, and what it takes from the other tables."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from pathlib import Path
from typing import Final

from gatepass.daemon.addresses import addresses_redirected_to
from gatepass.daemon.safe_paths import read_own_file
from gatepass.daemon.toml_tables import errors_name_file, parse_tables, uid_of
from gatepass.errors import ConfigurationError
from gatepass_gateway.redirect.rules import Network, RedirectSettings
from gatepass_gateway.schema import NO_REDIRECT, File

_LOOPBACK: Final[tuple[Network, ...]] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1"))


def load(path: Path) -> RedirectSettings:
    """Return the settings in the TOML file at `path`. Raise `ConfigurationError`, which names file and key."""
    with errors_name_file(path):
        return resolve(parse_tables(read_own_file(path), File), redirected_to=addresses_redirected_to())


def resolve(file: File, *, redirected_to: Iterable[str]) -> RedirectSettings:
    """Return the settings that `file` stands for. Raise `ConfigurationError`.

    `redirected_to` are the addresses of this machine that the rules lead to.
    """
    if file.redirect is NO_REDIRECT:
        raise ConfigurationError("the table [redirect] is missing; an empty one is enough", where="redirect")
    if file.listen.port == file.upstream.port:
        raise ConfigurationError(
            "the redirect leads from the gateway's port to another; give the proxy a port of its own, such as 789",
            where="listen.port",
        )
    _check_addresses(file.listen.addresses, redirected_to)
    return RedirectSettings(
        gateway_port=file.upstream.port,
        proxy_port=file.listen.port,
        proxy_uid=_proxy_uid(file),
        allow_from=_networks(file.redirect.allow_from),
    )


def _check_addresses(listed: Iterable[str], redirected_to: Iterable[str]) -> None:
    for address in redirected_to:
        if address not in listed:
            raise ConfigurationError(
                f'the redirect leads to {address} too, where the proxy does not listen; add "{address}", here and to '
                "the socket unit, as 'gatepass-broker install' does",
                where="listen.addresses",
            )


def _proxy_uid(file: File) -> int:
    where = "redirect.proxy_user"
    uid = _uid(file.redirect.proxy_user, where)
    if uid == 0:
        raise ConfigurationError("all of root's programs would pass; give the proxy an account of its own", where=where)
    if file.upstream.user is not None and uid == _uid(file.upstream.user, "upstream.user"):
        raise ConfigurationError(
            "the gateway behind runs as this user, and all that it starts would pass; give the proxy an account of "
            "its own",
            where=where,
        )
    return uid


def _uid(user: str | int, where: str) -> int:
    return user if isinstance(user, int) else uid_of(user, where)


def _networks(texts: Iterable[str]) -> tuple[Network, ...]:
    networks = [_network(text) for text in texts]
    # Merged, because a set in nftables takes no two that overlap.
    return (
        *collapse_addresses(network for network in networks if isinstance(network, IPv4Network)),
        *collapse_addresses(network for network in networks if isinstance(network, IPv6Network)),
    )


def _network(text: str) -> Network:
    where = "redirect.allow_from"
    if "%" in text:
        raise ConfigurationError(f"'{text}' has a zone, which no packet brings; leave it out", where=where)
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ConfigurationError(f"this is not an address or a network: {error}", where=where) from None
    if any(network.overlaps(own) for own in _LOOPBACK if own.version == network.version):
        raise ConfigurationError(
            f"'{text}' holds loopback addresses, and nothing true comes from another machine with one; name the "
            "addresses of your reverse proxy",
            where=where,
        )
    return network
