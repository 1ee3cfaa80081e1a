"""What setup has written, and what was there before: for running it again, for check, and for `--undo`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final, NamedTuple

from gatepass.errors import ConfigurationError
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
    """Whether somebody else changed the configuration between two setups: undoing all loses that."""
    way: Way | None = None
    """None in one from before this was noted."""


def digest(text: str) -> str:
    """Return the digest of a file's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def to_text(record: Record) -> str:
    """Return what is written to the file."""
    return json.dumps(record._asdict(), indent=2) + "\n"


def from_text(text: str, name: str) -> Record:
    """Return the record in `text`. Raise `ConfigurationError`."""
    try:
        return Record(**json.loads(text))
    except (ValueError, TypeError):
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
