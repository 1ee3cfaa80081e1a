"""Configuration files: TOML whose form is given by msgspec structs, with errors that name the file and the key."""

from __future__ import annotations

import difflib
import grp
import pwd
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gatepass.errors import ConfigurationError

_File = TypeVar("_File", bound=msgspec.Struct)


def parse_tables(text: bytes, form: type[_File]) -> _File:
    """Return the tables in `text`, their form checked. Raise `ConfigurationError`, whose `where` is a key path."""
    try:
        return check_tables(tomllib.loads(text.decode("utf-8")), form)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"this is not TOML: {error}") from None


def check_tables(tables: Mapping[str, Any], form: type[_File]) -> _File:
    """Return `tables`, as `tomllib` gives them, with their form checked. Raise `ConfigurationError`."""
    try:
        return msgspec.convert(tables, type=form, strict=True)
    except msgspec.ValidationError as error:
        raise _form_error(str(error), form) from None


@contextmanager
def errors_name_file(path: Path) -> Iterator[None]:
    """Put `path` before the key path in the `where` of every `ConfigurationError`."""
    try:
        yield
    except ConfigurationError as error:
        if error.where.startswith(str(path)):
            raise
        where = f"{path}: {error.where}" if error.where else str(path)
        raise ConfigurationError(error.message.removeprefix(f"{error.where}: "), where=where) from None


def uid_of(name: str, where: str) -> int:
    """Return the uid of the user `name`. Raise `ConfigurationError`."""
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):  # ValueError: a name with a NUL in it
        raise ConfigurationError(f"there is no user '{name}'", where=where) from None


def gid_of(name: str, where: str) -> int:
    """Return the gid of the group `name`. Raise `ConfigurationError`."""
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise ConfigurationError(f"there is no group '{name}'", where=where) from None


def _form_error(text: str, form: type[msgspec.Struct]) -> ConfigurationError:
    """Turn msgspec's sentence into ours. It ends in ' - at `$.rule[0].uid`' or ' - at `key` in `$.identity.users`'."""
    message, _, place = text.partition(" - at `")
    path = place.rpartition("`$")[2] if "`$" in place else place.removeprefix("$")
    where = path.rstrip("`").lstrip(".").replace("[...]", "[]")
    if unknown := re.search(r"unknown field `(.*)`", message, re.DOTALL):
        return ConfigurationError(f"there is no key {unknown[1]!r} here{_hint(unknown[1], form, where)}", where=where)
    if missing := re.search(r"missing required field `(.*)`", message):
        return ConfigurationError(f"the key '{missing[1]}' is missing", where=where)
    return ConfigurationError(message[:1].lower() + message[1:], where=where)


def _hint(key: str, form: type[msgspec.Struct], where: str) -> str:
    known = _keys_at(form, where)
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; there are: {', '.join(known)}" if known else ""


def _keys_at(form: type[msgspec.Struct], where: str) -> list[str]:
    """Return the keys of the table at a key path such as `rule[0]` or `identity.users[]`; none if there is no such."""
    table = _table(msgspec.inspect.type_info(form))
    for step in re.findall(r"\[[^]]*\]|[^.\[]+", where):
        if table is None:
            return []
        # What stands in a list or in a map of tables is found through its field already.
        if not step.startswith("["):
            table = next((_table(entry.type) for entry in table.fields if entry.encode_name == step), None)
    return [] if table is None else [entry.encode_name for entry in table.fields]


def _table(form: msgspec.inspect.Type) -> msgspec.inspect.StructType | None:
    """Return the table that a value of `form` is, holds in a list or map, or may be; None if there is none."""
    match form:
        case msgspec.inspect.StructType():
            return form
        case msgspec.inspect.VarTupleType(item_type=inner) | msgspec.inspect.ListType(item_type=inner):
            return _table(inner)
        case msgspec.inspect.DictType(value_type=inner):
            return _table(inner)
        case msgspec.inspect.UnionType(types=kinds):
            return next((table for table in map(_table, kinds) if table is not None), None)
    return None
