"""Reading the proxy's configuration: TOML, its form, and what each value has to be."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from gatepass.daemon.safe_paths import read_own_file
from gatepass.daemon.toml_tables import errors_name_file, parse_tables, uid_of
from gatepass.errors import ConfigurationError
from gatepass.paths import default_socket, personal_socket
from gatepass_gateway.clients import ReverseProxy
from gatepass_gateway.gate import Deadlines
from gatepass_gateway.headers import HOP_BY_HOP, Headers, canonical_name, is_forwarding
from gatepass_gateway.schema import (
    NO_REDIRECT,
    File,
    IdentityTable,
    LimitsTable,
    ReverseProxyTable,
    UpstreamTable,
)
from gatepass_gateway.sock_diag import Address
from gatepass_gateway.trusted_proxy import IdentityPolicy
from gatepass_gateway.upstream import UpstreamSettings

_ANONYMOUS_SOURCE: Final = "127.0.0.1"
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""RFC 9110 section 5.1."""
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e]+( [\x21-\x7e]+)*")
_UNIT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.\\-]*(@[A-Za-z0-9:_.\\-]+)?\.service")
"""A service's name (systemd.unit(5)), an instance's if it is a template."""
_SCOPE: Final = re.compile(r"[\x21\x23-\x2b\x2d-\x5b\x5d-\x7e]+")
"""A scope name (RFC 6749 section 3.3), less the comma that separates them in OpenClaw's header."""


class ConnectionLimits(NamedTuple):
    """How many clients at a time."""

    connections: int
    connections_per_uid: int
    waiting: int
    waiting_per_uid: int


class Settings(NamedTuple):
    """The whole configuration, resolved."""

    source: str
    listen: tuple[Address, ...]
    upstream: UpstreamSettings
    policy: IdentityPolicy
    reverse_proxies: tuple[ReverseProxy, ...]
    redirected_port: int | None
    """The gateway's own port, where the kernel leads from there to `listen`."""
    audience: str
    client_address: bytes
    extra_headers: frozenset[bytes]
    fixed_headers: Headers
    broker_socket: str
    jwks_file: Path | None
    issuer: str | None
    broker_absence_seconds: int
    state_dir: Path | None
    """Where something may be kept over a restart."""
    device_login_uids: frozenset[int]
    limits: ConnectionLimits
    deadlines: Deadlines


def load(path: Path) -> Settings:
    """Return the settings in the TOML file at `path`. Raise `ConfigurationError`, which names file and key."""
    with errors_name_file(path):
        return resolve(parse_tables(read_own_file(path), File), source=str(path))


def resolve(file: File, *, source: str) -> Settings:
    """Return the settings that `file` stands for. `source` names it to people. Raise `ConfigurationError`."""
    listen = tuple((_loopback(address, "listen.addresses"), file.listen.port) for address in file.listen.addresses)
    upstream = _upstream(file.upstream)
    if upstream.address in listen or not listen:
        raise ConfigurationError("the proxy and the gateway behind need different ports", where="upstream.port")
    if file.keys.issuer and not file.keys.jwks_file:
        raise ConfigurationError("this goes with keys.jwks_file: the broker says its own", where="keys.issuer")
    if file.keys.jwks_file and file.keys.broker_socket:
        raise ConfigurationError("name either broker_socket or jwks_file, not both", where="keys")
    return Settings(
        source=source,
        listen=listen,
        upstream=upstream,
        policy=_policy(file.identity),
        reverse_proxies=tuple(
            _reverse_proxy(table, f"reverse_proxy[{number}]") for number, table in enumerate(file.reverse_proxy)
        ),
        redirected_port=None if file.redirect is NO_REDIRECT else file.upstream.port,
        audience=file.identity.audience,
        client_address=_ip(file.identity.client_address, "identity.client_address").encode("ascii"),
        extra_headers=_extra_headers(file.identity),
        fixed_headers=_fixed_headers(file.identity),
        broker_socket=file.keys.broker_socket or default_socket(),
        jwks_file=_absolute(file.keys.jwks_file, "keys.jwks_file") if file.keys.jwks_file else None,
        issuer=file.keys.issuer,
        broker_absence_seconds=file.keys.broker_absence_seconds,
        state_dir=_state_dir(file.sessions.state_dir, os.environ),
        device_login_uids=frozenset(_uid(user, "device_logins.users") for user in file.device_logins.users),
        limits=_limits(file.limits),
        deadlines=Deadlines(
            head=file.limits.head_seconds,
            first_frame=file.limits.first_frame_seconds,
            body=file.limits.body_seconds,
            login=file.limits.login_seconds,
        ),
    )


def _upstream(table: UpstreamTable) -> UpstreamSettings:
    address = _ipv4_loopback(table.address, "upstream.address")
    source = _ipv4_loopback(table.identity_source, "upstream.identity_source")
    if source == _ANONYMOUS_SOURCE:
        raise ConfigurationError(
            f"{source} is where every local program comes from; take another, such as 127.7.7.7, and make it the "
            "only one in the trustedProxies of the gateway behind",
            where="upstream.identity_source",
        )
    uid = os.geteuid() if table.user is None else _uid(table.user, "upstream.user")
    return UpstreamSettings((address, table.port), uid, _ANONYMOUS_SOURCE, source)


def _reverse_proxy(table: ReverseProxyTable, where: str) -> ReverseProxy:
    if table.unit is not None and not _UNIT.fullmatch(table.unit):
        raise ConfigurationError(
            f"'{table.unit}' is not the full name of a service, such as nginx.service", where=f"{where}.unit"
        )
    return ReverseProxy(_uid(table.user, f"{where}.user"), table.unit)


def _policy(table: IdentityTable) -> IdentityPolicy:
    user_header = _header_name(table.user_header, "identity.user_header")
    scopes_header = _header_name(table.scopes_header, "identity.scopes_header") if table.scopes_header else None
    if user_header in (scopes_header, b"x-forwarded-for"):
        raise ConfigurationError("this header says something else already", where="identity.user_header")
    return IdentityPolicy(
        user_header=user_header,
        scopes_header=scopes_header,
        users={
            _matching(_HEADER_VALUE, user, "identity.users"): frozenset(
                _matching(_SCOPE, scope, f"identity.users.'{user}'") for scope in scopes
            )
            for user, scopes in table.users.items()
        },
    )


def _extra_headers(table: IdentityTable) -> frozenset[bytes]:
    where = "identity.extra_headers"
    names = frozenset(_header_name(name, where) for name in table.extra_headers)
    if names & _own_headers(table) or any(map(is_forwarding, names)):
        raise ConfigurationError("a client must not bring what the proxy itself says about it", where=where)
    return names


def _own_headers(table: IdentityTable) -> frozenset[bytes]:
    """Return the names of the headers that the proxy sets beside an identity."""
    return frozenset((table.user_header.lower().encode(), table.scopes_header.lower().encode(), b"x-forwarded-for"))


def _fixed_headers(table: IdentityTable) -> Headers:
    own = _own_headers(table)
    fields = []
    for name, value in table.fixed_headers.items():
        where = f"identity.fixed_headers.'{name}'"
        field = (_header_name(name, where), _matching(_HEADER_VALUE, value, where).encode("ascii"))
        if field[0] in own:
            raise ConfigurationError("this header is set by the proxy itself", where=where)
        fields.append(field)
    return tuple(fields)


def _limits(table: LimitsTable) -> ConnectionLimits:
    if table.waiting_per_uid >= table.waiting:
        raise ConfigurationError(
            "must be less than limits.waiting, or one user could keep all others out", where="limits.waiting_per_uid"
        )
    return ConnectionLimits(table.connections, table.connections_per_uid, table.waiting, table.waiting_per_uid)


def _state_dir(named: str | None, environ: Mapping[str, str]) -> Path | None:
    """Return the directory for state: the one named, else systemd's (systemd.exec(5)), else the person's own."""
    if named is not None:
        return _absolute(named, "sessions.state_dir")
    if runtime := environ.get("RUNTIME_DIRECTORY"):
        return Path(runtime.partition(":")[0])
    own = Path(personal_socket(environ)).parent
    return own if own.is_dir() and os.access(own, os.W_OK) else None


def _absolute(text: str, where: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise ConfigurationError(f"'{text}' is not an absolute path", where=where)
    return path


def _ip(text: str, where: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ConfigurationError(f"'{text}' is not an IP address", where=where) from None


def _loopback(text: str, where: str) -> str:
    address = _ip(text, where)
    if not ipaddress.ip_address(address).is_loopback:
        raise ConfigurationError(
            f"'{text}' can be reached from other machines, and to the gateway behind their requests would look local; "
            "put a reverse proxy there and name it in [[reverse_proxy]]",
            where=where,
        )
    return address


def _ipv4_loopback(text: str, where: str) -> str:
    address = _ip(text, where)
    if not address.startswith("127."):
        raise ConfigurationError(f"'{text}' is not in 127.0.0.0/8", where=where)
    return address


def _uid(user: str | int, where: str) -> int:
    return user if isinstance(user, int) else uid_of(user, where)


def _header_name(text: str, where: str) -> bytes:
    """Return the name in lower case. One that canonicalises to another would never match what is compared with it."""
    name = _matching(_HEADER_NAME, text, where).lower().encode("ascii")
    if canonical_name(name) != name or name in HOP_BY_HOP | {b"host", b"authorization", b"content-length"}:
        raise ConfigurationError(
            f"'{text}' has a meaning of its own in HTTP, or is spelt so that servers differ about it: name another "
            "header, with letters, digits and dashes",
            where=where,
        )
    return name


def _matching(pattern: re.Pattern[str], text: str, where: str) -> str:
    if not pattern.fullmatch(text):
        raise ConfigurationError(f"{text!r} is not allowed here: use printable ASCII characters", where=where)
    return text
