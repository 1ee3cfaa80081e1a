"""Which files and directories can be relied on: those that nobody but root and ourselves can replace or change.

Where every directory on the way is safe, names in it mean the same thing twice, and the races between looking and
doing that symbolic links are used for cannot be won. Precedent: MUNGE's path_is_secure.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from gatepass.errors import ConfigurationError

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def check_directory(path: Path) -> Path:
    """Return the real path of `path`, a directory in which only root and we can make or move names.

    Raise `ConfigurationError` for any other. The directories above it may be sticky, as /tmp is: there nobody can move
    what is another's. Go on with the path returned: a symbolic link on the way may be changed by its owner.
    """
    real = Path(os.path.realpath(path))
    status = _status(real)
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigurationError("this is not a directory", where=str(path))
    _check_owner(status, path)
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise ConfigurationError(_writable(path), where=str(path))
    for parent in real.parents:
        above = _status(parent)
        _check_owner(above, parent)
        if above.st_mode & _WRITABLE_BY_OTHERS and not above.st_mode & stat.S_ISVTX:
            raise ConfigurationError(_writable(parent), where=str(path))
    return real


def make_directory(path: Path) -> Path:
    """Make `path` with mode 0700, parents included, unless it is there. Return and raise as `check_directory` does."""
    try:
        for parent in [*reversed(path.parents), path]:
            if not parent.exists():
                parent.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigurationError(f"the directory cannot be made: {error.strerror}", where=str(path)) from None
    return check_directory(path)


def read_own_file(path: Path) -> bytes:
    """Return the contents of a file that only root and we can have written. Raise `ConfigurationError`."""
    path = check_directory(path.parent) / path.name
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        reason = "it is a symbolic link; name the file itself" if path.is_symlink() else error.strerror
        raise ConfigurationError(f"the file cannot be opened: {reason}", where=str(path)) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError("this is not a regular file", where=str(path))
        _check_owner(status, path)
        if status.st_mode & _WRITABLE_BY_OTHERS:
            raise ConfigurationError(_writable(path), where=str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _status(path: Path) -> os.stat_result:
    try:
        return path.lstat()
    except OSError as error:
        raise ConfigurationError(f"this cannot be looked at: {error.strerror}", where=str(path)) from None


def _check_owner(status: os.stat_result, path: Path) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigurationError(
            f"it belongs to uid {status.st_uid}, who could replace what is in it; `chown root {path}`, or to the "
            "user that this program runs as",
            where=str(path),
        )


def _writable(path: Path) -> str:
    return f"others than its owner can write to {path}; `chmod go-w {path}`"
