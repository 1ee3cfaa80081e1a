"""What to tell a person whose broker cannot be asked: the cause, and what they can do about it."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from typing import Final

from gatepass.errors import ErrorCode, UnreachableError
from gatepass.paths import ADMIN_SOCKET, SYSTEM_SOCKET
from gatepass.patience import CutOffError, Patience

_START_SYSTEM: Final = (
    "start it ('systemctl start gatepass-broker'; 'systemctl status gatepass-broker' says why it stopped), "
    "or one of your own ('gatepass-broker --loopback-user NAME')"
)
_NO_ADMIN: Final = (
    f"the broker has no socket for administrators, {ADMIN_SOCKET} does not exist: give it one in its configuration "
    '([[socket]] with allow = ["request", "admin"]), or say with --socket where it is'
)
_START_OWN: Final = "start it ('gatepass-broker --loopback-user NAME'), or set GATEPASS_SOCKET to where yours listens"


def delay_after(error: Exception, patience: Patience, path: str) -> float:
    """Return the seconds to wait before the broker at `path` is asked again after `error`, if that makes sense.

    Raise `error` if not; an `OSError` becomes an `UnreachableError` that says what to do.
    """
    try:
        return patience.delay_after(error)
    except OSError as final:
        raise UnreachableError(*_explain(final, path, patience.timeout)) from final


def _explain(error: OSError, path: str, timeout: float) -> tuple[ErrorCode, str]:
    if isinstance(error, PermissionError):
        return ErrorCode.PERMISSION, _permission(path)
    if isinstance(error, TimeoutError):
        return ErrorCode.TIMEOUT, f"the broker at {path} did not answer in {timeout:g} s: see its log, and try again"
    if path == ADMIN_SOCKET and isinstance(error, FileNotFoundError) and os.access(SYSTEM_SOCKET, os.F_OK):
        return ErrorCode.UNREACHABLE, _NO_ADMIN
    cure = _START_SYSTEM if path in (SYSTEM_SOCKET, ADMIN_SOCKET) else _START_OWN
    return ErrorCode.UNREACHABLE, f"{_finding(error, path)}: {cure}"


def _finding(error: OSError, path: str) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"no broker is running, {path} does not exist"
    if isinstance(error, ConnectionRefusedError):
        return f"no broker is running, nobody listens on {path}"
    if isinstance(error, BlockingIOError):
        return f"the broker at {path} has more connections waiting than it takes"
    if isinstance(error, CutOffError | ConnectionResetError | BrokenPipeError):
        return f"the broker at {path} closes the connection without a reply"
    return f"the broker at {path} cannot be reached ({error.strerror or type(error).__name__})"


def _permission(path: str) -> str:
    """Name the group to join, or the account that the socket is for."""
    place, status = _deepest_visible(path)
    needed = stat.S_IWGRP if stat.S_ISSOCK(status.st_mode) else stat.S_IXGRP
    user, group = _user_name(os.geteuid()), _group_name(status.st_gid)
    is_for_group = status.st_mode & needed
    if path == ADMIN_SOCKET and (place != path or not is_for_group):
        return f"user {user} may not use {path}, where root administers the broker: run this as root (sudo)"
    if not is_for_group:
        return f"user {user} may not use {place}, which is for user {_user_name(status.st_uid)} alone"
    if _is_listed(user, group):
        return f"user {user} is in the group '{group}' that may use {place}, but joined after logging in: log in again"
    return f"only the group '{group}' may use {place}: 'sudo usermod -aG {group} {user}', then log in again"


def _deepest_visible(path: str) -> tuple[str, os.stat_result]:
    """The socket if it can be seen, else the directory that hides it."""
    while True:
        try:
            return path, os.lstat(path)
        except OSError:
            path = os.path.dirname(path)


def _is_listed(user: str, group: str) -> bool:
    try:
        return user in grp.getgrnam(group).gr_mem
    except KeyError:
        return False


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
