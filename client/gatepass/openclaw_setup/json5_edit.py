"""Changing one value in a JSON5 text and not a byte else: comments, order and spacing are their author's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from gatepass.openclaw_setup.json5 import Json, Member, Node, parse, skip

_UNIT: Final = "  "
"""One step of indentation where the text shows none of its own."""


def set_value(text: str, path: Sequence[str], value: Json) -> str:
    """Return `text` with `value` at `path`, whose objects are made where they are missing."""
    node, depth = _deepest(parse(text), path)
    if depth == len(path):
        return text[: node.start] + _dump(value, _indentation(text, node.start)) + text[node.end :]
    for key in reversed(path[depth + 1 :]):
        value = {key: value}
    return _insert(text, node, path[depth], value)


def remove_value(text: str, path: Sequence[str]) -> str:
    """Return `text` without the member at `path`, which must be there."""
    parent = parse(text).at(*path[:-1])
    assert parent is not None  # noqa: S101 - the caller has seen it
    index = next(number for number, member in enumerate(parent.members) if member.key == path[-1])
    member, is_last = parent.members[index], index == len(parent.members) - 1
    end = skip(text, member.node.end)
    has_comma = text[end] == ","
    if has_comma and not is_last:
        return text[: member.start] + text[_next_visible(text, end + 1) :]
    end = end + 1 if has_comma else member.node.end
    head = text[: _last_visible(text, member.start)]
    if not has_comma and index > 0:
        comma = skip(text, parent.members[index - 1].node.end)  # its member is the last one from now on
        head = head[:comma] + head[comma + 1 :]
    # What stands above may be a comment, which ends with its line.
    gap = "" if "\n" not in text[len(head) : member.start] or _starts_line(text, end) else "\n"
    return head + gap + text[end:]


def _deepest(node: Node, path: Sequence[str]) -> tuple[Node, int]:
    """The node that stands furthest along `path`, and how many keys lead to it."""
    for depth, key in enumerate(path):
        found = node.at(key)
        if found is None:
            return node, depth
        node = found
    return node, len(path)


def _insert(text: str, parent: Node, key: str, value: Json) -> str:
    if not parent.members:
        return _insert_first(text, parent, key, value)
    last = parent.members[-1]
    end = max(_last_visible(text, parent.end - 1), last.node.end)
    separator = _separator(text, parent.members[0])
    if "//" in text[last.node.end : end]:  # a comment that ends with its line
        separator = separator if separator != " " else "\n"
    dumped = separator + _member(key, value, separator)
    if text[skip(text, last.node.end)] == ",":  # the author's style: keep it
        return text[:end] + dumped + "," + text[end:]
    return text[: last.node.end] + "," + text[last.node.end : end] + dumped + text[end:]


def _insert_first(text: str, parent: Node, key: str, value: Json) -> str:
    outer = _indentation(text, parent.start)
    separator = f"\n{outer}{_UNIT}"
    end = max(_last_visible(text, parent.end - 1), parent.start + 1)
    return text[:end] + separator + _member(key, value, separator) + f"\n{outer}" + text[parent.end - 1 :]


def _separator(text: str, first: Member) -> str:
    """What stands before each member of an object: a new line and its indentation, or one space."""
    start = _last_visible(text, first.start)
    between = text[start : first.start]
    return "\n" + between.rpartition("\n")[2] if "\n" in between else " "


def _member(key: str, value: Json, separator: str) -> str:
    name, indentation = json.dumps(key, ensure_ascii=False), separator.lstrip("\n")
    return f"{name}: {_dump(value, indentation, multiline=separator != indentation)}"


def _dump(value: Json, indentation: str, *, multiline: bool = True) -> str:
    if not multiline or not isinstance(value, dict | list) or not value:
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False, indent=len(_UNIT)).replace("\n", f"\n{indentation}")


def _indentation(text: str, position: int) -> str:
    """The white space that begins the line of `position`."""
    line = text[text.rfind("\n", 0, position) + 1 : position]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _starts_line(text: str, position: int) -> bool:
    return "\n" in text[position : _next_visible(text, position)]


def _next_visible(text: str, position: int) -> int:
    return position + len(text[position:]) - len(text[position:].lstrip())


def _last_visible(text: str, position: int) -> int:
    """Where the white space before `position` begins."""
    return len(text[:position].rstrip())
