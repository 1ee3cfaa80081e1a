"""The proxy's own configuration, TOML, made from the same wishes as OpenClaw's."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from gatepass.errors import ConfigurationError
from gatepass.openclaw_setup.json5 import Json
from gatepass.openclaw_setup.wishes import IDENTITY_SOURCE, ReverseProxy, Wishes

_HEAD: Final = """\
# The gatepass proxy in front of OpenClaw, written by 'gatepass openclaw setup'.
# It has to agree with OpenClaw's own configuration: run that again rather than change what it has written.
# Tables that it does not know, such as [limits], are yours, and stay.
"""

_HEADER_VALUES: Final = {"x-forwarded-proto": "http", "x-forwarded-host": "localhost"}
"""For OpenClaw's `requiredHeaders`: it asks that they are there, not what they say."""
_ALWAYS_SENT: Final = frozenset({"x-forwarded-for", "x-openclaw-scopes"})


def read_proxy_file(text: str, name: str) -> dict[str, Any]:
    """Return the tables in `text`. Raise `ConfigurationError`."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"this is not TOML: {error}. Nothing was changed", where=name) from None


def wanted_tables(existing: Mapping[str, Any], wishes: Wishes, uid: int) -> dict[str, Any]:
    """Return `existing` with what the wishes say about it. `uid` is who runs OpenClaw."""
    tables = dict(existing)
    tables["listen"] = {**_table(existing, "listen"), "port": wishes.proxy_port}
    tables["upstream"] = {
        **_table(existing, "upstream"),
        "port": wishes.openclaw_port,
        "user": uid,
        "identity_source": IDENTITY_SOURCE,
    }
    identity = {**_table(existing, "identity"), "user_header": wishes.user_header}
    identity["users"] = {**_table(identity, "users"), wishes.user: list(wishes.scopes)}
    if fixed := _fixed_headers(_table(identity, "fixed_headers"), wishes):
        identity["fixed_headers"] = fixed
    tables["identity"] = identity
    if wishes.broker_socket is not None:
        tables["keys"] = {**_table(existing, "keys"), "broker_socket": wishes.broker_socket}
    if wishes.reverse_proxies:
        tables["reverse_proxy"] = [_reverse_proxy(proxy) for proxy in wishes.reverse_proxies]
    return tables


def render(tables: Mapping[str, Any], head: str = _HEAD) -> str:
    """Return the tables as a file, with `head` above them."""
    return head + "".join(_table_lines((), tables))


def _reverse_proxy(proxy: ReverseProxy) -> dict[str, Json]:
    return {"user": proxy.user} if proxy.unit is None else {"user": proxy.user, "unit": proxy.unit}


def _table(tables: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = tables.get(name)
    return found if isinstance(found, dict) else {}


def _fixed_headers(existing: Mapping[str, str], wishes: Wishes) -> dict[str, str]:
    present = {name.lower() for name in existing} | _ALWAYS_SENT | {wishes.user_header.lower()}
    needed = [name.lower() for name in wishes.required_headers if name.lower() not in present]
    return {**existing, **{name: _HEADER_VALUES.get(name, "gatepass") for name in needed}}


def _table_lines(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[str]:
    plain = {key: value for key, value in table.items() if not _is_table(value)}
    if path and (plain or not table):
        yield f"\n[{'.'.join(map(_key, path))}]\n"
    for key, value in plain.items():
        yield f"{_key(key)} = {_value(value)}\n"
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _table_lines((*path, key), value)
        elif _is_table(value):
            for entry in value:
                yield f"\n[[{'.'.join(map(_key, (*path, key)))}]]\n"
                yield from (f"{_key(name)} = {_value(inner)}\n" for name, inner in entry.items())


def _is_table(value: Json) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "_").isidentifier()
    return key if bare else _value(key)


def _value(value: Json) -> str:
    """A value in TOML. Its basic strings, numbers, booleans and arrays are written as JSON's are."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
