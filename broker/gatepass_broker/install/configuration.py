"""The two configuration files. Values in, text out."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from gatepass.daemon.toml_tables import check_tables
from gatepass.errors import ConfigurationError
from gatepass.openclaw_setup.proxy_file import render
from gatepass.openclaw_setup.wishes import IDENTITY_SOURCE
from gatepass.paths import ADMIN_SOCKET
from gatepass_broker.config import resolve
from gatepass_broker.install.layout import (
    BROKER_ACCOUNT,
    BROKER_SOCKET,
    CALLERS_GROUP,
    FOLLOW_SOCKET,
    GATEWAY_ACCOUNT,
)
from gatepass_broker.install.request import Request
from gatepass_broker.operator_scopes import OPERATOR_SCOPES
from gatepass_broker.personal import DEFAULT_AUDIENCES, RECONNECT_SECONDS
from gatepass_broker.schema import File

_GATEWAY_HEAD: Final = """\
# The gatepass proxy in front of OpenClaw, and the redirect. Written by 'gatepass-broker install', which keeps it in
# step with OpenClaw's own configuration: run that again rather than change what it has written. What you add is yours,
# and stays whenever it writes this anew; remarks do not.
# After a change: gatepass-gateway --config /etc/gatepass/gateway.toml --check && systemctl restart gatepass-gateway
# After one of [redirect]: gatepass-broker install
"""

ADMIN_TABLE: Final = f"""\
[[socket]]
path = "{ADMIN_SOCKET}"
mode = "0600"
owner = "{BROKER_ACCOUNT}"
group = "{BROKER_ACCOUNT}"
allow = ["request", "admin"]
"""
"""For root, whom no mode keeps out: what `gatepass revoke`, `lock` and their like take."""

_UNPRIVILEGED: Final = 1_024
"""The first port that any user can take."""


class FromSetup(NamedTuple):
    """What `gatepass openclaw setup` has chosen, of all that it wrote for the proxy."""

    openclaw_port: int
    user_header: str
    scopes: tuple[str, ...]
    """Of the loopback user."""
    fixed_headers: Mapping[str, str]


def broker_text(request: Request) -> str:
    """Return the broker's first configuration. From then on it is the operator's."""
    accounts = request.accounts
    user = _text(accounts[0]) if len(accounts) == 1 else _list(accounts)
    return f"""\
# The gatepass broker. Written once by 'gatepass-broker install'; it is yours, and never changed again.
# After a change: gatepass-broker --config /etc/gatepass/broker.toml --check && systemctl reload gatepass-broker

[broker]
loopback_user = {_text(request.loopback_user or "")}
state_dir = "/var/lib/gatepass"
jwks_file = "/run/gatepass-broker/jwks.json"

# The sockets are made by their units; what is said here has to agree with those.
[[socket]]
path = "{BROKER_SOCKET}"
mode = "0660"
owner = "{BROKER_ACCOUNT}"
group = "{CALLERS_GROUP}"
allow = ["request"]

[[socket]]
path = "{FOLLOW_SOCKET}"
mode = "0660"
owner = "{BROKER_ACCOUNT}"
group = "{GATEWAY_ACCOUNT}"
allow = ["follow"]

# For root alone.
{ADMIN_TABLE}
# Who gets what: the first rule that matches the caller counts, alone. Rules of /etc/gatepass/conf.d/*.toml come after
# those that are here. Whoever is named has to be in the group '{CALLERS_GROUP}' too: usermod -aG {CALLERS_GROUP} NAME
#
# This one would have OpenClaw's service, and what it starts, do less than a person's own shell:
#
# [[rule]]
# name = "the service"
# user = {user}
# unit = "{request.unit}"  # user_unit, if it runs under a person's own manager
# audiences = {_list(DEFAULT_AUDIENCES)}
# scopes = ["operator.read", "operator.write"]
# bind = "unit"  # its tokens are good in that unit only; "process": only as long as the process that asked lives
# per_minute = 60

[[rule]]
name = "local programs"
user = {user}
audiences = {_list(DEFAULT_AUDIENCES)}
# Each by name: OpenClaw does not take operator.admin to include the others.
scopes = {_list(OPERATOR_SCOPES)}
# Eight hours: for so long after it got its token, a program that has logged in with it (`openclaw tui`) can reconnect,
# from the same user and unit, unless that is revoked. 0: only as long as the token lives.
reconnect = {RECONNECT_SECONDS}
"""


def has_socket(content: bytes, name: str, path: str) -> bool:
    """Whether a configuration of the broker's, in the file `name`, has a socket at `path`. Raise `ConfigurationError`.

    Its form is not looked at: that is the broker's own business.
    """
    tables = read_tables(content, name).get("socket")
    listed = tables if isinstance(tables, list) else []
    return any(isinstance(table, dict) and table.get("path") == path for table in listed)


def loopback_user_in(content: bytes, name: str) -> object:
    """Return the loopback user in a configuration of the broker's, in the file `name`. Raise `ConfigurationError`."""
    return _table(read_tables(content, name), "broker").get("loopback_user")


def check_broker_text(request: Request) -> None:
    """Raise `ConfigurationError` if the broker would not take its configuration, whatever accounts there are."""
    tables = tomllib.loads(broker_text(request))
    for table in tables["socket"]:
        del table["owner"], table["group"]
    for table in tables["rule"]:
        table["uid"] = 0
        del table["user"]
    resolve(check_tables(tables, File), source=None, digest="")


def from_setup(text: str, loopback_user: str) -> FromSetup:
    """Return what a proxy's configuration says that OpenClaw's account has written. Raise `ConfigurationError`.

    That account may be hostile, and root acts on it: only what is OpenClaw's own to choose is taken.
    """
    try:
        tables = msgspec.convert(tomllib.loads(text), type=_ByOpenClaw)
        scopes = tables.identity.users[loopback_user]
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, KeyError, RecursionError) as error:
        raise ConfigurationError(
            f"what 'gatepass openclaw setup' wrote for the proxy cannot be used: {error}; run this again"
        ) from None
    return FromSetup(tables.upstream.port, tables.identity.user_header, scopes, tables.identity.fixed_headers)


def check_openclaw_port(port: int, request: Request, uid: int, listening: Collection[int]) -> None:
    """Raise `ConfigurationError` for a port that is not OpenClaw's: what others send there would be redirected.

    `listening` are the users who listen there now, at whatever address: the redirect leads from all of them.
    """
    where = "gateway.port in OpenClaw's configuration"
    if port == request.proxy_port:
        raise ConfigurationError(f"{port} is the port of the proxy; give that another one, --port PORT", where=where)
    if port < _UNPRIVILEGED and uid != 0:
        raise ConfigurationError(
            f"{port} is a privileged port, which uid {uid} cannot listen on; take one from {_UNPRIVILEGED} on",
            where=where,
        )
    if others := sorted(set(listening) - {uid}):
        raise ConfigurationError(
            f"uid {others[0]} listens on port {port}, and OpenClaw runs as uid {uid}; give OpenClaw a port of its "
            "own, or name the account that runs it, --openclaw-user USER",
            where=where,
        )


def gateway_tables(
    existing: Mapping[str, Any], chosen: FromSetup, request: Request, uid: int, addresses: Iterable[str]
) -> dict[str, Any]:
    """Return the proxy's configuration: `existing`, with what setup and install decide. The rest is the operator's.

    `uid` is who runs OpenClaw, `addresses` those that the proxy listens on.
    """
    tables = dict(existing)
    tables["listen"] = {**_table(existing, "listen"), "port": request.proxy_port, "addresses": [*addresses]}
    tables["upstream"] = {
        **_table(existing, "upstream"),
        "port": chosen.openclaw_port,
        "user": uid,
        "identity_source": IDENTITY_SOURCE,
    }
    identity = {**_table(existing, "identity"), "user_header": chosen.user_header}
    identity["users"] = {**_table(identity, "users"), str(request.loopback_user): [*chosen.scopes]}
    if chosen.fixed_headers:
        identity["fixed_headers"] = {**_table(identity, "fixed_headers"), **chosen.fixed_headers}
    tables["identity"] = identity
    keys = _table(existing, "keys")
    tables["keys"] = keys if "jwks_file" in keys else {**keys, "broker_socket": FOLLOW_SOCKET}
    if request.reverse_proxies == ():
        tables.pop("reverse_proxy", None)
    elif request.reverse_proxies is not None:
        tables["reverse_proxy"] = [msgspec.to_builtins(proxy) for proxy in request.reverse_proxies]
    tables["redirect"] = {"proxy_user": GATEWAY_ACCOUNT, **_table(existing, "redirect")}
    return tables


def gateway_text(existing: bytes | None, tables: Mapping[str, Any], read: Mapping[str, Any]) -> bytes:
    """Return the file with `tables`: `existing` as it is, a person's remarks included, where that says so (`read`)."""
    if existing is not None and tables == read:
        return existing
    return render(tables, _GATEWAY_HEAD).encode()


def read_tables(content: bytes | None, name: str) -> dict[str, Any]:
    """Return the tables in a file; none if there is no file. Raise `ConfigurationError`."""
    try:
        return tomllib.loads((content or b"").decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"this is not TOML: {error}. It was left as it is", where=name) from None


class _Upstream(Struct, frozen=True):
    port: int


class _Identity(Struct, frozen=True):
    user_header: str
    users: dict[str, tuple[str, ...]]
    fixed_headers: dict[str, str] = {}


class _ByOpenClaw(Struct, frozen=True):
    """Other tables are not looked at."""

    upstream: _Upstream
    identity: _Identity


def _table(tables: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = tables.get(name)
    return found if isinstance(found, dict) else {}


def _text(value: str) -> str:
    """A string of JSON is one of TOML."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _list(values: Iterable[str]) -> str:
    return f"[{', '.join(map(_text, values))}]"
