"""Reading the broker's configuration: its files, their form, and what each value has to be.

Names of users and groups are looked up here, once: a look-up can be slow or fail, and must not do so in a request. So
a group that changes its number takes a reload.
"""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import Final

from msgspec.structs import astuple

from gatepass.daemon.safe_paths import check_directory, read_own_file
from gatepass.daemon.toml_tables import errors_name_file, gid_of, parse_tables, uid_of
from gatepass.errors import ConfigurationError
from gatepass.tokens import b64encode
from gatepass_broker.judge import Rules
from gatepass_broker.rule_tables import check_audience, check_identity, rules_of
from gatepass_broker.schema import BrokerTable, File, RulesFile, SocketTable
from gatepass_broker.settings import ConnectionLimits, JournalLimits, Lifetimes, Settings, SocketSettings

RULES_DIRECTORY: Final = "conf.d"
"""Beside the file: more files, which hold rules."""


def load(path: Path) -> Settings:
    """Return the settings in the TOML file at `path` and, after its rules, those in `conf.d/*.toml` beside it.

    Raise `ConfigurationError`, which names file and key.
    """
    text = read_own_file(path)
    with errors_name_file(path):
        file = parse_tables(text, File)
        settings = resolve(file, source=str(path), digest=b64encode(hashlib.sha256(text).digest()))
    for more in _rule_files(path):
        settings = _with_rules(settings, more, file.broker)
    return settings


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
            issuer=f"gatepass:{check_audience(broker.id or socket.gethostname(), 'broker.id')}",
            rules=rules_of(file.rule, broker),
            default_ttl=broker.default_ttl,
            source=source,
            max_ttl=broker.max_ttl,
        ),
        lifetimes=Lifetimes(key=broker.key_lifetime, token=broker.max_ttl),
        limits=ConnectionLimits(*astuple(file.limits)),
        journal=JournalLimits(*astuple(file.journal)),
        state_dir=_absolute(broker.state_dir, "broker.state_dir"),
        jwks_file=None if broker.jwks_file is None else _absolute(broker.jwks_file, "broker.jwks_file"),
        sockets=_sockets(file.socket),
        digest=digest,
    )


def _rule_files(path: Path) -> list[Path]:
    """Return the files with more rules that belong to the one at `path`, by name. Raise `ConfigurationError`."""
    directory = check_directory(path.parent) / RULES_DIRECTORY
    if not os.path.lexists(directory):
        return []
    try:
        names = os.listdir(check_directory(directory))  # noqa: PTH208 - names are what is sorted
    except OSError as error:
        raise ConfigurationError(f"the directory cannot be read: {error.strerror}", where=str(directory)) from None
    return [directory / name for name in sorted(names) if name.endswith(".toml") and not name.startswith(".")]


def _with_rules(settings: Settings, path: Path, broker: BrokerTable) -> Settings:
    """Return `settings` with the rules of one more file after those that it has. Raise `ConfigurationError`."""
    text = read_own_file(path)
    with errors_name_file(path):
        rules = rules_of(parse_tables(text, RulesFile).rule, broker, settings.rules.rules, path.name)
    # No name holds a '/', so no two sets of files make the same bytes.
    so_far = f"{settings.digest}/{path.name}/".encode(errors="surrogateescape")
    return settings._replace(
        rules=settings.rules._replace(rules=rules),
        digest=b64encode(hashlib.sha256(so_far + text).digest()),
        rule_files=(*settings.rule_files, path),
    )


def _check_broker(broker: BrokerTable) -> None:
    check_identity(broker.loopback_user, "broker.loopback_user")
    if broker.default_ttl > broker.max_ttl:
        raise ConfigurationError(
            f"{broker.default_ttl} is more than broker.max_ttl, {broker.max_ttl}", where="broker.default_ttl"
        )


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


def _absolute(text: str, where: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or "\0" in text or ".." in path.parts:
        raise ConfigurationError(f"'{text}' is not an absolute path without '..'", where=where)
    return path
