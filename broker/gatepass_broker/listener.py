"""The listening Unix sockets: made so that nobody can connect before permissions are right, and taken away again.

A path is bound with no permissions at all, gets owner, group and mode, and only then listens. A lock file beside it,
held for life, keeps two brokers from taking each other's socket for a stale one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import Final

from gatepass.daemon.safe_paths import check_directory
from gatepass.errors import ConfigurationError
from gatepass_broker.settings import SocketSettings

MAX_PATH: Final = 107
"""Bytes of a socket's path: unix(7), sun_path without its final zero."""

_PROBE_SECONDS: Final = 2.0


class Listener:
    """One bound socket. `socket` does not listen yet: whoever serves it starts that."""

    def __init__(self, settings: SocketSettings, bound: socket.socket, lock: int, path: Path) -> None:
        self.settings = settings
        self.socket = bound
        self._lock = lock
        self._path = path
        status = path.lstat()
        self._identity = (status.st_dev, status.st_ino)

    def close(self) -> None:
        """Close the socket, and remove its path if that is still ours.

        The lock file stays: removing it would let a third broker lock a new one while a second waits for the old.
        """
        self.socket.close()
        with contextlib.suppress(OSError):
            status = self._path.lstat()
            if (status.st_dev, status.st_ino) == self._identity:
                self._path.unlink()
        os.close(self._lock)


def open_listener(settings: SocketSettings) -> Listener:
    """Return a bound socket as `settings` say. Raise `ConfigurationError`, and then nothing of it is left."""
    path = _checked_path(settings.path)
    lock = _lock(path)
    try:
        _clear_stale(path)
        return Listener(settings, _bind(path, settings), lock, path)
    except BaseException:
        os.close(lock)
        raise


def _checked_path(path: Path) -> Path:
    if str(path).startswith(("@", "\0")):
        raise _error(path, "abstract sockets have no permissions at all, so none is made")
    real = check_directory(path.parent) / path.name
    length = len(os.fsencode(real))
    if length > MAX_PATH:
        raise _error(path, f"the path has {length} bytes and a socket's path may have {MAX_PATH}; choose a shorter one")
    return real


def _lock(path: Path) -> int:
    name = f"{path}.lock"
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _error(path, f"its lock file {name} cannot be opened: {error.strerror}; remove it") from None
    try:
        _take_lock(descriptor, path, name)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _take_lock(descriptor: int, path: Path, name: str) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise _error(path, f"its lock file {name} is not a regular file; remove it")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _error(path, "another broker serves this socket; stop it first") from None


def _clear_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more. Anything else in the way is an error."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise _error(path, "something that is not a socket is in the way; look at it, then remove it")
    if _answers(path):
        raise _error(path, "another process listens on this socket; stop it first")
    path.unlink()


def _answers(path: Path) -> bool:
    """Whether anybody may be listening: only a refused connection shows that nobody is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except OSError as error:
            return error.errno != errno.ECONNREFUSED
    return True


def _bind(path: Path, settings: SocketSettings) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _bind_closed(bound, path)
        try:
            _apply(path, settings)
        except BaseException:
            path.unlink()
            raise
    except BaseException:
        bound.close()
        raise
    bound.setblocking(False)
    return bound


def _bind_closed(bound: socket.socket, path: Path) -> None:
    """Bind with mode 0000. The umask is the whole process's: this runs at start, before there are threads."""
    umask = os.umask(0o777)
    try:
        bound.bind(str(path))
    except OSError as error:
        raise _error(path, f"the socket cannot be made: {error.strerror}") from None
    finally:
        os.umask(umask)


def _apply(path: Path, settings: SocketSettings) -> None:
    """Give the path its owner, group and mode, and look that it has them: some file systems forget."""
    owner = -1 if settings.owner is None else settings.owner
    group = -1 if settings.group is None else settings.group
    try:
        os.chown(path, owner, group, follow_symlinks=False)
        path.chmod(settings.mode)  # not a link: it was made just now, in a directory that is ours
    except OSError as error:
        raise _error(path, _not_applied(settings, error.strerror)) from None
    status = path.lstat()
    kept = owner in (status.st_uid, -1) and group in (status.st_gid, -1)
    if not kept or stat.S_IMODE(status.st_mode) != settings.mode:
        raise _error(path, _not_applied(settings, "the file system did not keep them"))


def _not_applied(settings: SocketSettings, reason: str | None) -> str:
    return (
        f"owner {settings.owner}, group {settings.group}, mode {settings.mode:04o} cannot be given to the socket: "
        f"{reason}; run the broker as root or as a member of that group, or change the [[socket]]"
    )


def _error(path: Path, message: str) -> ConfigurationError:
    return ConfigurationError(message, where=str(path))
