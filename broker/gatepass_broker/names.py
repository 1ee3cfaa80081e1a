"""What the names in rules look like, and what `*` in them stands for. Values in, values out."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

ANY: Final = "*"

_SCOPE_CHARACTERS: Final = r"[\x21\x23-\x29\x2b-\x5b\x5d-\x7e]"
"""Of a scope name: RFC 6749 section 3.3. Without `*`, so that no token ever says a pattern."""
_SCOPE: Final = re.compile(f"{_SCOPE_CHARACTERS}+")
_SCOPE_PATTERN: Final = re.compile(rf"(?:{_SCOPE_CHARACTERS}|\*)+")
_AUDIENCE: Final = re.compile(r"[\x21-\x7e]+")

UNIT_TYPES: Final = ("service", "scope", "socket", "mount", "swap")
"""Those that can have processes: systemd.unit(5), systemd.exec(5), systemd.scope(5)."""
_UNIT_CHARACTERS: Final = r"[A-Za-z0-9:_.\\@-]"
_MAX_UNIT: Final = 255
_UNIT: Final = re.compile(rf"(?:{_UNIT_CHARACTERS}|\*)+\.(?:{'|'.join(UNIT_TYPES)})")
_TEMPLATE: Final = re.compile(r"[^@]+@\.[a-z]+")
_SLICE: Final = re.compile(rf"(?:{_UNIT_CHARACTERS}|\*)+\.slice")

_CONTAINER: Final = re.compile(r"[0-9a-f]{12,64}")


def is_scope(text: str) -> bool:
    """Whether `text` can be a scope name in a token."""
    return _SCOPE.fullmatch(text) is not None


def is_scope_or_pattern(text: str) -> bool:
    """Whether `text` can stand in a rule's `scopes`."""
    return _SCOPE_PATTERN.fullmatch(text) is not None


def is_audience(text: str) -> bool:
    """Whether `text` can be an audience."""
    return _AUDIENCE.fullmatch(text) is not None


def is_unit(text: str) -> bool:
    """Whether `text` is the full name (systemd.unit(5)) of a unit that can have processes, or a pattern of such names.

    A template is none: only its instances have processes.
    """
    return len(text) <= _MAX_UNIT and _UNIT.fullmatch(text) is not None and _TEMPLATE.fullmatch(text) is None


def is_literal_unit(text: str) -> bool:
    """Whether `text` is such a name and no pattern."""
    return is_unit(text) and ANY not in text


def is_slice(text: str) -> bool:
    """Whether `text` is the full name of a slice, or a pattern of such names."""
    return len(text) <= _MAX_UNIT and _SLICE.fullmatch(text) is not None


def is_cgroup(text: str) -> bool:
    """Whether `text` is the path of a cgroup from the root of the hierarchy, in its shortest form."""
    if not text.isprintable() or not text.startswith("/"):
        return False
    return text == "/" or not {"", ".", ".."} & set(text[1:].split("/"))


def is_container(text: str) -> bool:
    """Whether `text` is a container's id or enough of its beginning."""
    return _CONTAINER.fullmatch(text) is not None


@lru_cache(maxsize=1_024)
def scope_pattern(pattern: str) -> re.Pattern[str]:
    """Return what fully matches the scope names that `pattern` means."""
    return re.compile(_glob(pattern, _SCOPE_CHARACTERS))


def unit_pattern(pattern: str) -> str:
    """Return a regular expression for the units that `pattern` means."""
    return _glob(pattern, "[^/]")


def beneath(path: str) -> str:
    """Return a regular expression for the cgroup `path` and those beneath it."""
    return f"{re.escape(path.rstrip('/'))}(?s:/.*)?"


def beginning(text: str) -> str:
    """Return a regular expression for what begins with `text`."""
    return f"{re.escape(text)}(?s:.*)"


def _glob(pattern: str, character: str) -> str:
    """Return a regular expression in which each `*` stands for any number of `character`.

    Atomic groups: the leftmost place for each piece is good for all that follow, so what a caller sends is read once,
    however many `*` there are.
    """
    first, *rest = map(re.escape, re.sub(r"\*+", ANY, pattern).split(ANY))
    if not rest:
        return first
    *middle, last = rest
    return first + "".join(f"(?>{character}*?{piece})" for piece in middle) + f"{character}*{last}"
