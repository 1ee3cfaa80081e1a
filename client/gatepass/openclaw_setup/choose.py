"""From what was asked for and what is there already to the one set of wishes. What was chosen once is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gatepass.errors import ConfigurationError
from gatepass.openclaw_setup.desired import ABSENT, AUTH, TRUSTED_PROXY, value_at
from gatepass.openclaw_setup.json5 import Json, Node
from gatepass.openclaw_setup.wishes import (
    ADMIN_SCOPE,
    DEFAULT_PORT,
    IDENTITY_SOURCE,
    ReverseProxy,
    Way,
    Wishes,
    covers_loopback,
    is_unguessable,
)

RANDOM_HEADER_PREFIX = "x-gatepass-user-"


class Asked(NamedTuple):
    """What the command line says; None and () where it says nothing."""

    user: str | None = None
    scopes: tuple[str, ...] = ()
    way: Way | None = None
    second_port: int | None = None
    user_header: str | None = None
    broker_socket: str | None = None
    reverse_proxies: tuple[ReverseProxy, ...] = ()


class NoUserError(ConfigurationError):
    """Nobody has said yet who the local programs are."""


class Surroundings(NamedTuple):
    """What neither the configurations nor the command line say."""

    launcher: str
    operator_scopes: tuple[str, ...]
    """Every scope that this OpenClaw knows."""
    random: str
    """32 hexadecimal digits, made anew."""


def choose(root: Node, tables: Mapping[str, Any], asked: Asked, given: Surroundings) -> Wishes:
    """Return the wishes. `tables` is the proxy's configuration so far.

    Raise `ConfigurationError`.
    """
    user = asked.user or _known_user(tables)
    port = _port(root)
    way = asked.way or ("redirect" if _number(tables, "upstream") == port else "front")
    second_port = asked.second_port or _second_port(tables, port, way)
    if second_port == port:
        raise ConfigurationError(f"OpenClaw and the proxy cannot both have port {port}", where="--second-port")
    reverse_proxies = _reverse_proxies(tables, asked)
    header, is_kept = _user_header(root, tables, asked, bool(reverse_proxies), given.random)
    return Wishes(
        user=user,
        scopes=_scopes(root, tables, asked, user, given.operator_scopes),
        way=way,
        port=port,
        second_port=second_port,
        user_header=header,
        launcher=given.launcher,
        trusted_proxies=_remote_proxies(root),
        only_user=not is_kept,
        broker_socket=asked.broker_socket or _text(tables, "keys", "broker_socket"),
        reverse_proxies=reverse_proxies,
        required_headers=_strings(value_at(root, (*TRUSTED_PROXY, "requiredHeaders"))),
    )


def loopback_proxies(root: Node) -> tuple[str, ...]:
    """Return the entries of `trustedProxies` that trust every local program."""
    return tuple(
        entry
        for entry in _strings(value_at(root, ("gateway", "trustedProxies")))
        if entry != IDENTITY_SOURCE and covers_loopback(entry) == "only"
    )


def _remote_proxies(root: Node) -> tuple[str, ...]:
    entries = _strings(value_at(root, ("gateway", "trustedProxies")))
    return tuple(dict.fromkeys(entry for entry in entries if covers_loopback(entry) != "only"))


def _known_user(tables: Mapping[str, Any]) -> str:
    users = _users(tables)
    if len(users) == 1:
        return next(iter(users))
    raise NoUserError(
        "say who your local programs shall be to OpenClaw, by the name that your reverse proxy has for you or any "
        "other: gatepass openclaw setup --loopback-user derek@example.com"
    )


def _scopes(
    root: Node, tables: Mapping[str, Any], asked: Asked, user: str, operator_scopes: Sequence[str]
) -> tuple[str, ...]:
    """Those asked for, else those chosen before. Whoever may do everything gets every scope by name."""
    if unknown := [name for name in asked.scopes if name not in operator_scopes]:
        known = ", ".join(operator_scopes)
        raise ConfigurationError(f"this OpenClaw has no scope '{unknown[0]}', but {known}", where="--scope")
    before = (_strings(_users(tables).get(user)), _strings(value_at(root, (*AUTH, "identityScopes", user))))
    chosen = next(filter(None, (asked.scopes, *before)), ())
    return tuple(sorted(set(operator_scopes if not chosen or ADMIN_SCOPE in chosen else chosen)))


def _user_header(
    root: Node,
    tables: Mapping[str, Any],
    asked: Asked,
    has_reverse_proxy: bool,
    random: str,
) -> tuple[str, bool]:
    """Return the name, and whether somebody besides the gatepass proxy may be sending it.

    A name that a reverse proxy sends is kept, or nobody could come in through it any more. Otherwise it is unguessable:
    OpenClaw never tells it, so it is a second lock beside the source address, which any local program can bind.
    """
    current = value_at(root, (*TRUSTED_PROXY, "userHeader"))
    is_kept = isinstance(current, str) and (has_reverse_proxy or bool(_remote_proxies(root)))
    if asked.user_header is not None:
        return asked.user_header.lower(), is_kept
    earlier = _text(tables, "identity", "user_header")
    if isinstance(current, str) and (is_kept or is_unguessable(current) or current == earlier):
        return current, is_kept
    return (earlier if earlier and is_unguessable(earlier) else RANDOM_HEADER_PREFIX + random), False


def _port(root: Node) -> int:
    port = value_at(root, ("gateway", "port"))
    if port is ABSENT:
        return DEFAULT_PORT
    if not isinstance(port, int) or not 0 < port < 65_535:
        raise ConfigurationError("this is not the number of a port. Nothing was changed", where="gateway.port")
    return port


def _second_port(tables: Mapping[str, Any], port: int, way: Way) -> int:
    """Return the port chosen before, which is not OpenClaw's `port`; that may be another one since."""
    for table in ("upstream", "listen") if way == "front" else ("listen", "upstream"):
        number = _number(tables, table)
        if number is not None and number != port:
            return number
    return port + 1


def _number(tables: Mapping[str, Any], table: str) -> int | None:
    found = tables.get(table)
    port = found.get("port") if isinstance(found, dict) else None
    return port if isinstance(port, int) else None


def _text(tables: Mapping[str, Any], table: str, key: str) -> str | None:
    found = tables.get(table)
    value = found.get(key) if isinstance(found, dict) else None
    return value if isinstance(value, str) else None


def _users(tables: Mapping[str, Any]) -> Mapping[str, Any]:
    identity = tables.get("identity")
    users = identity.get("users") if isinstance(identity, dict) else None
    return users if isinstance(users, dict) else {}


def _reverse_proxies(tables: Mapping[str, Any], asked: Asked) -> tuple[ReverseProxy, ...]:
    """Those asked for, else those chosen before. A unit that was named once is kept, also by hand."""
    before = reverse_proxies_in(tables)
    units = {proxy.user: proxy.unit for proxy in before}
    chosen = tuple(ReverseProxy(user, unit or units.get(user)) for user, unit in asked.reverse_proxies)
    return chosen or before


def reverse_proxies_in(tables: Mapping[str, Any]) -> tuple[ReverseProxy, ...]:
    """Return the reverse proxies that a configuration of the proxy's names."""
    entries = tables.get("reverse_proxy")
    listed = [entry for entry in entries if "user" in entry] if isinstance(entries, list) else []
    return tuple(ReverseProxy(entry["user"], entry.get("unit")) for entry in listed)


def _strings(value: Json) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()
