"""Reading the broker's configuration: TOML, its form, and what each value has to be.

Names of users and groups are looked up here, once: a look-up can be slow or fail, and must not do so in a request. So
a group that changes its number takes a reload.
"""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from gatepass.daemon.safe_paths import read_own_file
from gatepass.daemon.toml_tables import errors_name_file, gid_of, parse_tables, uid_of
from gatepass.errors import ConfigurationError
from gatepass.tokens import b64encode
from gatepass_broker.decide import Rules
from gatepass_broker.peer import overflow_gid, overflow_uid
from gatepass_broker.policy import Grant, Rule, Selector
from gatepass_broker.schema import BrokerTable, File, RuleTable, SocketTable
from gatepass_broker.settings import ConnectionLimits, JournalLimits, Lifetimes, Settings, SocketSettings

_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
"""A scope name: RFC 6749 section 3.3."""
_WORD: Final = re.compile(r"[\x21-\x7e]+")
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e]+( [\x21-\x7e]+)*")
"""An identity ends up in an HTTP header, so it is what every proxy passes on unchanged."""

_T = TypeVar("_T")


def load(path: Path) -> Settings:
    """Return the settings in the TOML file at `path`. Raise `ConfigurationError`, which names file and key."""
    text = read_own_file(path)
    with errors_name_file(path):
        return resolve(parse_tables(text, File), source=str(path), digest=b64encode(hashlib.sha256(text).digest()))


def resolve(file: File, *, source: str | None, digest: str) -> Settings:
    """Return the settings that `file` stands for. Raise `ConfigurationError`.

    `source` names it to people; None says that it came from options.
    """
    broker = file.broker
    _check_broker(broker)
    if not file.socket:
        raise ConfigurationError("there is no [[socket]]; without one nobody can connect", where="socket")
    return Settings(
        rules=Rules(
            issuer=f"gatepass:{_matching(_WORD, broker.id or socket.gethostname(), 'broker.id')}",
            rules=tuple(_rule(table, number, broker) for number, table in enumerate(file.rule)),
            default_ttl=broker.default_ttl,
            source=source,
        ),
        lifetimes=Lifetimes(key=broker.key_lifetime, token=broker.max_ttl),
        limits=ConnectionLimits(*msgspec.structs.astuple(file.limits)),
        journal=JournalLimits(*msgspec.structs.astuple(file.journal)),
        state_dir=_absolute(broker.state_dir, "broker.state_dir"),
        jwks_file=None if broker.jwks_file is None else _absolute(broker.jwks_file, "broker.jwks_file"),
        sockets=_sockets(file.socket),
        digest=digest,
    )


def _check_broker(broker: BrokerTable) -> None:
    _identity(broker.loopback_user, "broker.loopback_user")
    if broker.default_ttl > broker.max_ttl:
        raise ConfigurationError(
            f"{broker.default_ttl} is more than broker.max_ttl, {broker.max_ttl}", where="broker.default_ttl"
        )


def _rule(table: RuleTable, number: int, broker: BrokerTable) -> Rule:
    where = f"rule[{number}]"
    if not table.audiences:
        raise ConfigurationError("name at least one audience", where=f"{where}.audiences")
    max_ttl = broker.max_ttl if table.max_ttl is None else table.max_ttl
    if max_ttl > broker.max_ttl:
        raise ConfigurationError(f"{max_ttl} is more than broker.max_ttl, {broker.max_ttl}", where=f"{where}.max_ttl")
    grant = Grant(
        rule=table.name or where,
        identity=_identity(table.identity or broker.loopback_user, f"{where}.identity"),
        audiences=tuple(_matching(_WORD, name, f"{where}.audiences") for name in table.audiences),
        scopes=tuple(sorted({_matching(_SCOPE, name, f"{where}.scopes") for name in table.scopes})),
        max_ttl=max_ttl,
    )
    return Rule(_selector(table, where), grant)


def _selector(table: RuleTable, where: str) -> Selector:
    uids = (
        _chosen(table.uid, lambda uid: _known_uid(uid, f"{where}.uid")),
        _chosen(table.user, lambda name: _known_uid(uid_of(name, f"{where}.user"), f"{where}.user")),
    )
    gids = (
        _chosen(table.gid, lambda gid: _known_gid(gid, f"{where}.gid")),
        _chosen(table.group, lambda name: _known_gid(gid_of(name, f"{where}.group"), f"{where}.group")),
    )
    selector = Selector(tuple(s for s in uids if s is not None), tuple(s for s in gids if s is not None))
    if not selector.uids and not selector.gids:
        raise ConfigurationError("say whom this rule is for: uid, user, gid or group", where=where)
    return selector


def _chosen(value: _T | tuple[_T, ...] | None, resolve_one: Callable[[_T], int]) -> frozenset[int] | None:
    """Return the ids that a selector names, or None where it is absent. An empty list matches nobody."""
    if value is None:
        return None
    return frozenset(resolve_one(item) for item in (value if isinstance(value, tuple) else (value,)))


def _sockets(tables: tuple[SocketTable, ...]) -> tuple[SocketSettings, ...]:
    settings = tuple(_socket(table, f"socket[{number}]") for number, table in enumerate(tables))
    if len({entry.path for entry in settings}) != len(settings):
        raise ConfigurationError("two sockets have the same path", where="socket")
    return settings


def _socket(table: SocketTable, where: str) -> SocketSettings:
    if table.path.startswith(("@", "\0")):
        raise ConfigurationError(
            "abstract sockets have no permissions at all, so none is made; name a path in a directory",
            where=f"{where}.path",
        )
    return SocketSettings(
        path=_absolute(table.path, f"{where}.path"),
        mode=int(table.mode, 8),
        owner=None if table.owner is None else uid_of(table.owner, f"{where}.owner"),
        group=None if table.group is None else gid_of(table.group, f"{where}.group"),
        allow=frozenset(table.allow),
    )


def _known_uid(uid: int, where: str) -> int:
    if uid == overflow_uid():
        raise ConfigurationError(
            f"uid {uid} stands for users whom the kernel cannot name: it never matches", where=where
        )
    return uid


def _known_gid(gid: int, where: str) -> int:
    if gid == overflow_gid():
        raise ConfigurationError(
            f"gid {gid} stands for groups that the kernel cannot name: it never matches", where=where
        )
    return gid


def _absolute(text: str, where: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or "\0" in text or ".." in path.parts:
        raise ConfigurationError(f"'{text}' is not an absolute path without '..'", where=where)
    return path


def _identity(text: str, where: str) -> str:
    if text.count("@") > 1:
        raise ConfigurationError(f"'{text}' has more than one '@'", where=where)
    return _matching(_HEADER_VALUE, text, where)


def _matching(pattern: re.Pattern[str], text: str, where: str) -> str:
    if not pattern.fullmatch(text):
        raise ConfigurationError(
            f'{text!r} is not allowed here: use printable ASCII, no space at an end; in a scope no space, \\ or "',
            where=where,
        )
    return text
