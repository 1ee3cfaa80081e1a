"""Files of root's in directories of root's: replaced as a whole, and never open to more people than they shall be."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

DIRECTORY_MODE: Final = 0o755


def write(path: Path, content: bytes, mode: int, group: int | None = None) -> None:
    """Make `path` hold `content` at once, with `mode` and `group` (a gid; None: root's). Raise `OSError`."""
    staged = stage(path, content, mode, group)
    try:
        staged.rename(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def staged_of(path: Path) -> Path:
    """Return where what is to be at `path` is made, and lies if the run that made it was killed."""
    return path.with_name(f".{path.name}.new")


def stage(path: Path, content: bytes, mode: int, group: int | None = None) -> Path:
    """Write `content` to a new file beside `path` and return that. Raise `OSError`, with nothing left of it."""
    staged = staged_of(path)
    with suppress(FileNotFoundError):  # of a run that was killed
        staged.unlink()
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if group is not None:
                os.fchown(file.fileno(), -1, group)
            os.fchmod(file.fileno(), mode)  # after the group: until then nobody but root reads it
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    return staged


def read(path: Path) -> bytes | None:
    """Return what a regular file holds; None if there is nothing at `path`. Raise `OSError`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def is_as(path: Path, content: bytes, mode: int, group: int | None = None) -> bool:
    """Whether `path` is a regular file of ours with just this content, mode and group."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    owned = status.st_uid == os.geteuid() and group in (None, status.st_gid)
    return stat.S_ISREG(status.st_mode) and owned and stat.S_IMODE(status.st_mode) == mode and read(path) == content


def link(path: Path, target: str) -> None:
    """Make `path` a symbolic link to `target` at once, whatever it was. Raise `OSError`."""
    staged = staged_of(path)
    with suppress(FileNotFoundError):
        staged.unlink()
    staged.symlink_to(target)
    staged.rename(path)


def target_of(path: Path) -> str | None:
    """Return where a symbolic link points to; None for what is none, or not there."""
    return str(path.readlink()) if path.is_symlink() else None


def missing_directories(path: Path) -> list[Path]:
    """Return `path` and those above it that are not there, the uppermost first."""
    return [directory for directory in (*reversed(path.parents), path) if not directory.exists()]


def make_directory(path: Path) -> None:
    """Make one directory that all can look into. Raise `OSError`."""
    path.mkdir(mode=DIRECTORY_MODE)
    path.chmod(DIRECTORY_MODE)  # whatever the umask


def give_to_root(top: Path) -> None:
    """Make root the owner of `top` and of all below it, and of nothing that a link leads to. Raise `OSError`."""
    for _, directories, files, descriptor in os.fwalk(top, follow_symlinks=False):
        for name in (*directories, *files):
            os.chown(name, 0, 0, dir_fd=descriptor, follow_symlinks=False)
    os.chown(top, 0, 0, follow_symlinks=False)
