"""The listening Unix sockets: made so that nobody can connect before permissions are right, and taken away again.

A path is bound with no permissions at all, gets owner, group and mode, and only then listens. A lock file beside it,
held for life, keeps two brokers from taking each other's socket for a stale one. A socket that the service manager
hands over is its own: it is compared with the configuration, used, and left behind for the next run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from gatepass.daemon.pulse import Queue
from gatepass.daemon.safe_paths import check_directory
from gatepass.daemon.systemd import Inherited
from gatepass.errors import ConfigurationError
from gatepass_broker.settings import SocketSettings

MAX_PATH: Final = 107
"""Bytes of a socket's path: unix(7), sun_path without its final zero."""

_PROBE_SECONDS: Final = 2.0


class Listener:
    """One bound socket. `socket` does not listen yet, unless it was handed over: whoever serves it starts that."""

    def __init__(self, settings: SocketSettings, bound: socket.socket, release: Callable[[], None]) -> None:
        self.settings = settings
        self.socket = bound
        self.queue = Queue(bound)
        self._release = release

    def close(self) -> None:
        """Close the socket, and take away what was made for it."""
        self.socket.close()
        self._release()


def adopt_listeners(wanted: Sequence[SocketSettings], inherited: Iterable[Inherited]) -> dict[Path, Listener]:
    """Return the listening sockets among `inherited`, by their path. Raise `ConfigurationError` for one unheard of."""
    known = {settings.path: settings for settings in wanted}
    adopted: dict[Path, Listener] = {}
    for entry in inherited:
        bound = socket.socket(fileno=entry.descriptor)
        name = bound.getsockname()
        settings = known.get(Path(name)) if bound.family == socket.AF_UNIX and isinstance(name, str) else None
        if settings is None or not bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ConfigurationError(
                f"the service manager hands over '{entry.name}' at {name!r}, and no [[socket]] has that path: make the "
                "file and ListenStream= of the socket unit agree",
                where="socket",
            )
        _check_applied(settings.path, settings)
        bound.setblocking(False)
        adopted[settings.path] = Listener(settings, bound, _keep)
    return adopted


def open_listener(settings: SocketSettings) -> Listener:
    """Return a bound socket as `settings` say. Raise `ConfigurationError`, and then nothing of it is left."""
    path = _checked_path(settings.path)
    lock = _lock(path)
    try:
        _clear_stale(path)
        bound = _bind(path, settings)
    except BaseException:
        os.close(lock)
        raise
    return Listener(settings, bound, _remover(path, lock))


def _keep() -> None:
    """Take nothing away: the service manager holds the socket, and who connects now waits for the next broker."""


def _remover(path: Path, lock: int) -> Callable[[], None]:
    """Return what removes the socket at `path` if it is still the same one, and lets go of `lock`.

    The lock file stays: removing it would let a third broker lock a new one while a second waits for the old.
    """
    made = path.lstat()

    def remove() -> None:
        with contextlib.suppress(OSError):
            if os.path.samestat(path.lstat(), made):
                path.unlink()
        os.close(lock)

    return remove


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
    if not _is_applied(path, settings):
        raise _error(path, _not_applied(settings, "the file system did not keep them"))


def _is_applied(path: Path, settings: SocketSettings) -> bool:
    status = path.lstat()
    kept = settings.owner in (status.st_uid, None) and settings.group in (status.st_gid, None)
    return kept and stat.S_IMODE(status.st_mode) == settings.mode


def _check_applied(path: Path, settings: SocketSettings) -> None:
    """Refuse a socket of the service manager's that lets in others than the configuration says."""
    check_directory(path.parent)
    if not _is_applied(path, settings):
        raise _error(
            path,
            f"the service manager made the socket otherwise than the [[socket]] says ({_described(settings)}): make "
            "SocketUser=, SocketGroup= and SocketMode= of the socket unit agree with it",
        )


def _not_applied(settings: SocketSettings, reason: str | None) -> str:
    return (
        f"{_described(settings)} cannot be given to the socket: "
        f"{reason}; run the broker as root or as a member of that group, or change the [[socket]]"
    )


def _described(settings: SocketSettings) -> str:
    return f"owner {settings.owner}, group {settings.group}, mode {settings.mode:04o}"


def _error(path: Path, message: str) -> ConfigurationError:
    return ConfigurationError(message, where=str(path))
