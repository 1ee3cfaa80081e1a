"""Which installed distributions gatepass consists of, from the metadata that pip keeps."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final, NamedTuple

from gatepass.errors import ConfigurationError

NAME: Final = "gatepass"
ALWAYS: Final = ("broker",)
OPTIONAL: Final = ("gateway", "uvloop", "rich")
"""Extras that are taken along where they are installed."""

_NAME: Final = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_EXTRA: Final = re.compile(r"\bextra\s*==\s*['\"]([^'\"]+)['\"]")
_REINSTALL: Final = "install gatepass into a new virtual environment with pip, and run this from there"


class Requirement(NamedTuple):
    """A distribution that another one names."""

    name: str
    extra: str | None
    """The extra that it is for."""
    conditional: bool
    """Whether it is only for some machines or Pythons."""


class Source(NamedTuple):
    """An installed file."""

    name: str
    """Relative to site-packages."""
    path: Path
    expected: str | None
    """What its SHA-256 should be, as RECORD writes it."""

    def read(self) -> bytes:
        """Return its content. Raise `ConfigurationError` if it is not what was installed."""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"this was installed and cannot be read: {error.strerror}; {_REINSTALL}", where=str(self.path)
            ) from None
        found = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        if self.expected not in (None, found):
            raise ConfigurationError(f"this was changed after it was installed; {_REINSTALL}", where=str(self.path))
        return content


def requirement(line: str) -> Requirement:
    """Return what a `Requires-Dist` line says, as far as it matters between what is installed already."""
    text, _, marker = line.partition(";")
    found, extra = _NAME.match(text), _EXTRA.search(marker)
    return Requirement(found[1] if found else text, extra[1] if extra else None, bool(marker.strip()))


def installed_distributions(required: Sequence[str]) -> tuple[Distribution, ...]:
    """Return gatepass's distribution with those that it needs, for the extras `required` and whatever is optional.

    Raise `ConfigurationError` for what is missing, and for an installation that has no files of its own.
    """
    found: dict[str, Distribution] = {}
    _collect(NAME, (*required, *OPTIONAL), required, found)
    for entry in found.values():
        _refuse_editable(entry)
    return tuple(found.values())


def sources(entry: Distribution) -> Iterator[Source]:
    """Yield the files of a distribution that belong into site-packages. Raise `ConfigurationError`."""
    if entry.files is None:
        raise ConfigurationError(f"it is not on record which files {_title(entry)} consists of; {_REINSTALL}")
    for file in entry.files:
        if ".." in file.parts or file.is_absolute() or "__pycache__" in file.parts:
            continue  # commands are made anew, and byte code too
        expected = file.hash.value if file.hash and file.hash.mode == "sha256" else None
        yield Source(file.as_posix(), Path(str(file.locate())), expected)


def _collect(name: str, extras: Sequence[str], required: Sequence[str], found: dict[str, Distribution]) -> None:
    key = _canonical(name)
    if key in found:
        return
    found[key] = distribution(name)
    for wanted in map(requirement, found[key].requires or ()):
        if wanted.extra is not None and wanted.extra not in extras:
            continue
        try:
            _collect(wanted.name, (), required, found)
        except PackageNotFoundError:
            _refuse_missing(wanted, required)


def _refuse_missing(wanted: Requirement, required: Sequence[str]) -> None:
    """What has a condition besides an extra that is required may be for another machine: pip knows, and left it out."""
    if wanted.extra in required or not wanted.conditional:
        extra = f"[{wanted.extra}]" if wanted.extra else ""
        raise ConfigurationError(
            f"{wanted.name} is missing from this installation; `pip install 'gatepass{extra}'`"
        ) from None


def _refuse_editable(entry: Distribution) -> None:
    direct = entry.read_text("direct_url.json")
    if direct is not None and json.loads(direct).get("dir_info", {}).get("editable"):
        raise ConfigurationError(
            f"{_title(entry)} is installed as a link to a checkout, which services cannot reach and others may change. "
            "As root, in the checkout: `/usr/bin/python3 -m venv /root/gatepass && /root/gatepass/bin/pip install "
            "'.[all]' && /root/gatepass/bin/gatepass-broker install ...`"
        )


def _title(entry: Distribution) -> str:
    return f"{entry.metadata['Name']} {entry.version}"


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
