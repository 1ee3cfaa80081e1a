"""Reading JSON5 (https://spec.json5.org), with where each value stands: what an editor needs that changes nothing else.

The standard library has no reader of JSON5, and those on PyPI forget the places.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

Json: TypeAlias = Any
"""What JSON5 can say. Whoever reads it has to ask what it is."""

MAX_DEPTH: Final = 200

_TRIVIA: Final = re.compile(r"(?:[\s\ufeff]+|//[^\n\r\u2028\u2029]*|/\*.*?\*/)*", re.DOTALL)
_STRING: Final = re.compile(
    r""""(?:[^"\\\n\r]|\\(?:\r\n|.))*"|'(?:[^'\\\n\r]|\\(?:\r\n|.))*'""",
    re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(\r\n|.))", re.DOTALL)
_NAME: Final = re.compile(r"[^\W\d][\w$]*|\$[\w$]*")
_NUMBER: Final = re.compile(r"([+-]?)(?:0[xX]([0-9a-fA-F]+)|(Infinity|NaN)|((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?))")
_LITERALS: Final = {"true": True, "false": False, "null": None}
_ESCAPED: Final = {
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "0": "\0",
    **dict.fromkeys(("\n", "\r", "\r\n", "\u2028", "\u2029"), ""),  # a line that goes on
}


class Json5Error(ValueError):
    """The text is not JSON5. `position` is an index into it."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class Node(NamedTuple):
    """A value and the text that it stands in, `text[start:end]`."""

    value: Json
    start: int
    end: int
    members: tuple[Member, ...] = ()
    """Of an object, in order."""

    def at(self, *path: str) -> Node | None:
        """Return the node at `path`, if there is one."""
        node: Node | None = self
        for key in path:
            node = next((member.node for member in node.members if member.key == key), None) if node else None
        return node


class Member(NamedTuple):
    """`key: value` in an object; `start` is where the key begins."""

    key: str
    start: int
    node: Node


def parse(text: str) -> Node:
    """Return what `text` stands for. Raise `Json5Error`."""
    reader = _Reader(text)
    node = reader.value(0)
    if reader.next() != "":
        raise Json5Error("there is something after the end", reader.at)
    return node


def skip(text: str, position: int) -> int:
    """Return where the next thing stands, past white space and comments."""
    found = _TRIVIA.match(text, position)
    return found.end() if found else position


def line_and_column(text: str, position: int) -> tuple[int, int]:
    """Return the place of an index as people count: from 1."""
    before = text[:position]
    return before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1


class _Reader:
    """A position in the text that moves on."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def next(self) -> str:
        """Go to the next thing and return its first character, "" at the end."""
        self.at = skip(self.text, self.at)
        return self.text[self.at : self.at + 1]

    def value(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise Json5Error("this is nested too deeply", self.at)
        first, start = self.next(), self.at
        if first == "{":
            members: list[Member] = []
            self._items("}", lambda: members.append(self._member(members, depth)))
            return Node({member.key: member.node.value for member in members}, start, self.at, tuple(members))
        if first == "[":
            values: list[Json] = []
            self._items("]", lambda: values.append(self.value(depth + 1).value))
            return Node(values, start, self.at)
        return Node(self._scalar(), start, self.at)

    def _items(self, closing: str, read_one: Callable[[], None]) -> None:
        """Read what stands between the brackets, the last comma of which may be followed by nothing."""
        self.at += 1
        while self.next() != closing:
            read_one()
            if self.next() == ",":
                self.at += 1
            elif self.next() != closing:
                raise Json5Error(f"a ',' or '{closing}' is missing here", self.at)
        self.at += 1

    def _member(self, before: list[Member], depth: int) -> Member:
        start = self.at
        key = self._key()
        if any(member.key == key for member in before):
            # OpenClaw takes the last one; which one its reader meant, nobody can tell.
            raise Json5Error(f"the key '{key}' stands twice in one object", start)
        if self.next() != ":":
            raise Json5Error("a ':' is missing here", self.at)
        self.at += 1
        return Member(key, start, self.value(depth + 1))

    def _key(self) -> str:
        if found := self._take(_STRING):
            return _unquoted(found[0])
        if found := self._take(_NAME):
            return found[0]
        raise Json5Error("the name of a key is missing here", self.at)

    def _scalar(self) -> Json:
        start = self.at
        if found := self._take(_STRING):
            return _unquoted(found[0])
        if found := self._take(_NUMBER):
            return _number(found)
        if (found := self._take(_NAME)) and found[0] in _LITERALS:
            return _LITERALS[found[0]]
        raise Json5Error("a value is missing here, or is not one", start)

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        if found := pattern.match(self.text, self.at):
            self.at = found.end()
        return found


def _unquoted(literal: str) -> str:
    text = _ESCAPE.sub(_character, literal[1:-1])
    # Escapes are UTF-16: two of them may make one character, and one alone that belongs to a pair makes none.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _character(escape: re.Match[str]) -> str:
    if code := escape[1] or escape[2]:
        return chr(int(code, 16))
    return _ESCAPED.get(escape[3], escape[3])


def _number(found: re.Match[str]) -> int | float:
    sign, hexadecimal, word, decimal = found.groups()
    factor = -1 if sign == "-" else 1
    if hexadecimal:
        return factor * int(hexadecimal, 16)
    if word:
        return factor * float(word.lower()[:3])
    return factor * (int(decimal) if decimal.isdigit() else float(decimal))
