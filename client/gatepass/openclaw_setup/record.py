"""What setup has written, and what was there before: for running it again, for check, and for `--undo`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final, NamedTuple

from gatepass.errors import ConfigurationError
from gatepass.openclaw_setup.desired import ABSENT
from gatepass.openclaw_setup.restore import Written
from gatepass.openclaw_setup.wishes import Way

NAME: Final = "gatepass-setup.json"
BACKUP_SUFFIX: Final = ".before-gatepass"


class Record(NamedTuple):
    """The state of a setup. Paths to SHA-256 digests of what setup wrote there last."""

    config: str
    user: str
    proxy_file: str
    launcher: str
    digests: dict[str, str]
    mode: int
    """Of the configuration file, before."""
    edited: bool
    """Whether somebody else changed the configuration between two setups: undoing keeps that."""
    written: tuple[Written, ...] = ()
    """What setup put into the configuration; nothing in the records of setups that did not note it."""
    way: Way | None = None
    """None in one from before this was noted."""


def digest(text: str) -> str:
    """Return the digest of a file's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def to_text(record: Record) -> str:
    """Return what is written to the file."""
    written = [_to_json(entry) for entry in record.written]
    return json.dumps({**record._asdict(), "written": written}, indent=2) + "\n"


def from_text(text: str, name: str) -> Record:
    """Return the record in `text`. Raise `ConfigurationError`."""
    try:
        members = json.loads(text)
        written = tuple(map(_from_json, members.pop("written", ())))
        return Record(**members, written=written)
    except (ValueError, TypeError, AttributeError, KeyError):
        raise ConfigurationError(
            f"this does not say what an earlier setup did; compare your configuration with the copy in "
            f"*{BACKUP_SUFFIX} by hand, and remove this file",
            where=name,
        ) from None


def record_path(state_directory: Path) -> Path:
    """Return where the record is."""
    return state_directory / NAME


def backup_path(config: Path) -> Path:
    """Return where the configuration is kept as it was."""
    return config.with_name(config.name + BACKUP_SUFFIX)


def _to_json(entry: Written) -> dict[str, Any]:
    value = {} if entry.value is ABSENT else {"value": entry.value}
    return {"path": entry.path, **value}


def _from_json(members: dict[str, Any]) -> Written:
    return Written(tuple(members["path"]), members.get("value", ABSENT))
