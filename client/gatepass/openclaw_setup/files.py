"""Files that are replaced as a whole, by their owner only."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from gatepass.errors import ConfigurationError


def read_own(path: Path) -> str:
    """Return the text of a regular file of this user. Raise `ConfigurationError`, `FileNotFoundError`."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode) or not stat.S_ISREG(status.st_mode):
        raise ConfigurationError(
            "this is not a regular file, which OpenClaw demands; name the real one (OPENCLAW_CONFIG_PATH)",
            where=str(path),
        )
    if status.st_uid != os.geteuid():
        raise ConfigurationError(
            f"this belongs to uid {status.st_uid}, and you are uid {os.geteuid()}: run this as the user who "
            "runs OpenClaw",
            where=str(path),
        )
    return decode(path.read_bytes(), path)


def read_if_there(path: Path) -> str | None:
    """Return the text of a file, None if there is none. Raise `ConfigurationError`."""
    try:
        return decode(path.read_bytes(), path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"this cannot be read: {error.strerror}", where=str(path)) from None


def decode(data: bytes, path: Path) -> str:
    """Return `data` as text, of which every byte can be written back. Raise `ConfigurationError`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"this is not UTF-8, at byte {error.start}. Nothing was changed", where=str(path)
        ) from None


def stage(path: Path, text: str, mode: int) -> Path:
    """Write `text` to a new file beside `path` and return it. Raise `ConfigurationError`."""
    staged = path.with_name(f".{path.name}.gatepass-{os.getpid()}")
    try:
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):
            staged.unlink()
        raise ConfigurationError(f"this cannot be written: {error.strerror}", where=str(path)) from None
    return staged


def replace(path: Path, text: str, mode: int) -> None:
    """Make `path` hold `text`, at once. Its directories are made where they are missing, for this user alone."""
    make_private(path.parent)
    stage(path, text, mode).rename(path)


def make_private(directory: Path) -> None:
    """Make a directory for this user alone unless it is there. Raise `ConfigurationError`."""
    try:
        for parent in [*reversed(directory.parents), directory]:
            if not parent.exists():
                parent.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigurationError(f"the directory cannot be made: {error.strerror}", where=str(directory)) from None
