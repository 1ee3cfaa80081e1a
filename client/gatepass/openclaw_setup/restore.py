"""Undoing setup in a configuration that was changed since: what setup wrote goes, and the later changes stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from gatepass.openclaw_setup.desired import ABSENT, Change, Path, same, value_at
from gatepass.openclaw_setup.json5 import Json, Node, parse
from gatepass.openclaw_setup.json5_edit import remove_value, set_value


class Written(NamedTuple):
    """A value that setup has put into the configuration."""

    path: Path
    value: Any
    """`ABSENT` if it was removed."""


def all_written(earlier: Sequence[Written], made: Sequence[Change]) -> tuple[Written, ...]:
    """Return what setup has written, with what this run of it changed; no path of it leads into another's value."""
    listed = list(earlier)
    for change in made:
        around = next((entry for entry in listed if change.path[: len(entry.path)] == entry.path), None)
        if around is None:
            listed = [entry for entry in listed if entry.path[: len(change.path)] != change.path]
            listed.append(Written(change.path, change.new))
        else:
            value = _with(around.value, change.path[len(around.path) :], change.new)
            listed[listed.index(around)] = around._replace(value=value)
    return tuple(listed)


def changed_since(original: Node, now: Node, written: Sequence[Written]) -> tuple[Path, ...]:
    """Return where somebody has written another value over one of setup's, and nobody can tell what is wanted there."""
    return tuple(
        path
        for path, value in written
        if not same(found := value_at(now, path), value)
        and not same(found, value_at(original, path))
        and not (isinstance(found, list) and isinstance(value, list))
    )


def restored(original: Node, text: str, written: Sequence[Written]) -> str:
    """Return `text` with each value that setup has written as it is in `original`, and not a byte else changed.

    Of a list, setup's entries go and those of before come back; whatever else was added or removed stays so.
    """
    for path, value in written:
        before, found = value_at(original, path), value_at(parse(text), path)
        if isinstance(found, list) and isinstance(value, list) and not same(found, before):
            text = _put(original, text, path, _merged(before, found, value))
        elif not same(found, before):
            text = _put(original, text, path, before)
    return text


def _merged(before: Json, found: list[Json], written: list[Json]) -> Json:
    listed = before if isinstance(before, list) else []
    kept = [entry for entry in listed if entry in found or entry not in written]
    merged = kept + [entry for entry in found if entry not in written and entry not in kept]
    return merged or before


def _put(original: Node, text: str, path: Path, value: Json) -> str:
    if value is not ABSENT:
        return set_value(text, path, value)
    text = remove_value(text, path)
    # The objects that setup had to make on the way: OpenClaw does not take each of them empty.
    while value_at(original, path := path[:-1]) is ABSENT and value_at(parse(text), path) == {}:
        text = remove_value(text, path)
    return text


def _with(value: Json, path: Path, new: Json) -> Json:
    """Return `value`, an object unless `path` is empty, with `new` at `path`."""
    if not path:
        return new
    members = value if isinstance(value, dict) else {}
    return {**members, path[0]: _with(members.get(path[0]), path[1:], new)}
