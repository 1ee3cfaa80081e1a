"""Everything that `gatepass openclaw setup` would do, decided before anything is touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gatepass.errors import ConfigurationError
from gatepass.openclaw_setup.choose import Asked, Surroundings, choose, loopback_proxies, reverse_proxies_in
from gatepass.openclaw_setup.desired import ABSENT, TRUSTED_PROXY, Change, apply, changes, value_at
from gatepass.openclaw_setup.foreign import read_configuration
from gatepass.openclaw_setup.json5 import Node, parse
from gatepass.openclaw_setup.launcher import launcher_text
from gatepass.openclaw_setup.proxy_file import read_proxy_file, render, wanted_tables
from gatepass.openclaw_setup.wishes import Wishes, is_unguessable


class Found(NamedTuple):
    """What is there."""

    config_path: str
    config_text: str
    proxy_path: str
    proxy_text: str | None
    launcher_path: str
    uid: int
    """Who runs OpenClaw: whoever runs setup."""
    gatepass: str
    """The path of the command, for the launcher."""
    operator_scopes: tuple[str, ...]
    """Every scope that this OpenClaw knows."""
    random: str
    """32 hexadecimal digits, made anew."""


class Plan(NamedTuple):
    """What has to be there, and how it differs."""

    wishes: Wishes
    changes: tuple[Change, ...]
    config_text: str
    tables: Mapping[str, Any]
    """Of the proxy's configuration."""
    old_tables: Mapping[str, Any]
    proxy_text: str
    launcher_text: str
    notes: tuple[str, ...]
    """For a person to think about."""


def make_plan(found: Found, asked: Asked) -> Plan:
    """Return what to do. Raise `ConfigurationError`."""
    root = read_configuration(found.config_path, found.config_text)
    old_tables = read_proxy_file(found.proxy_text or "", found.proxy_path)
    given = Surroundings(found.launcher_path, found.operator_scopes, found.random)
    wishes = choose(root, old_tables, asked, given)
    wanted = changes(root, wishes)
    tables = wanted_tables(old_tables, wishes, found.uid)
    return Plan(
        wishes=wishes,
        changes=wanted,
        config_text=_applied(found, root, wanted),
        tables=tables,
        old_tables=old_tables,
        # Untouched where it says the same: what a person wrote beside it stays.
        proxy_text=found.proxy_text if found.proxy_text and tables == old_tables else render(tables),
        launcher_text=launcher_text(found.gatepass, wishes.broker_socket),
        notes=tuple(_notes(root, wishes, old_tables)),
    )


def _applied(found: Found, root: Node, wanted: tuple[Change, ...]) -> str:
    text = apply(found.config_text, wanted)
    if changed := _unexpected(root, parse(text), wanted):
        raise ConfigurationError(f"editing went wrong at '{changed}'. Nothing was changed", where=found.config_path)
    return text


def _unexpected(before: Node, after: Node, wanted: tuple[Change, ...]) -> str | None:
    """Return a top-level key that the edits changed and should not have, or a change that is not there."""
    sections = {change.path[0] for change in wanted}
    for key in {*before.value, *after.value} - sections:
        if before.value.get(key, ABSENT) != after.value.get(key, ABSENT):
            return str(key)
    return next((".".join(change.path) for change in wanted if value_at(after, change.path) != change.new), None)


def _notes(root: Node, wishes: Wishes, old_tables: Mapping[str, Any]) -> Iterator[str]:
    header = value_at(root, (*TRUSTED_PROXY, "userHeader"))
    if removed := loopback_proxies(root):
        cure = (
            "" if wishes.reverse_proxies else "; a reverse proxy on this machine is named by its user, --reverse-proxy"
        )
        names = ", ".join(removed)
        yield f"{names} no longer counts as a trusted proxy: with it every local program could be anybody{cure}"
    if isinstance(header, str) and header != wishes.user_header and not is_unguessable(header):
        # In the other way it is root's command that says this, and that has no such option.
        other = f", or run this with --user-header {header}" if wishes.way == "front" else ""
        yield (
            f"a reverse proxy that sends '{header}' has to send the new name, which the proxy's configuration has as "
            f"identity.user_header{other}"
        )
    if wishes.reverse_proxies and (header != wishes.user_header or _is_untold(wishes, old_tables)):
        yield (
            "your reverse proxy has to name the user in the header that the proxy's configuration calls "
            "identity.user_header, and to remove a client's own"
        )
    if wishes.way == "front" and not is_unguessable(wishes.user_header):
        yield (
            f"'{wishes.user_header}' can be guessed, and in this way any local user can reach OpenClaw's own port: "
            "have your reverse proxy send a name with 32 random hexadecimal digits at its end (--user-header), or use "
            "--way redirect"
        )
    bind = value_at(root, ("gateway", "bind"))
    if wishes.way == "front" and bind not in (ABSENT, "loopback"):
        yield (
            f"OpenClaw also listens for other machines (gateway.bind is {bind}): they have to dial "
            f"{wishes.second_port} from now on, or --way redirect keeps {wishes.port} for them"
        )
    identity = old_tables.get("identity", {})
    for user in set(identity.get("users", {}) if isinstance(identity, dict) else {}) - {wishes.user}:
        yield f"'{user}' stays in both configurations; remove it there if nobody logs in by that name"


def _is_untold(wishes: Wishes, old_tables: Mapping[str, Any]) -> bool:
    """Whether a reverse proxy is named that was not when the name of the header was made up."""
    is_new = any(proxy not in reverse_proxies_in(old_tables) for proxy in wishes.reverse_proxies)
    return is_new and is_unguessable(wishes.user_header)
