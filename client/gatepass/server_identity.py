"""Whom the client talks to: nobody but root, the caller, or the account that they gave the socket's place to.

A client that connects to any path would take an answer from whoever got there first. Two checks
close that, and neither depends on the other being in time:

1. Before connecting, each step of the path is followed as the kernel does, and each owner on the way must be *vouched
   for*: root and the caller are, and so is whoever owns an entry of a directory that only vouched-for accounts can
   write. So `/run`, in which root alone can make `/run/gatepass` and give it to the account `gatepass`, vouches for
   that account; `/tmp` vouches for nobody. A path that passes can be changed only by accounts that are trusted with it.
2. After connecting, the kernel says who called `listen()` (SO_PEERCRED, unix(7)): that must be root, which is systemd
   holding the socket for the broker, or the owner of the socket file.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from typing import Final

from gatepass.errors import ConfigurationError, ErrorCode, UnreachableError

UNMAPPED_UID: Final = 65_534
"""What the kernel shows for every account that a user namespace does not map (user_namespaces(7)): it is nobody."""

MAX_PATH: Final = 107
"""Longest socket path in bytes: `sun_path` less its final zero (unix(7))."""

_MAX_LINKS: Final = 40  # as the kernel's MAXSYMLINKS
_UCRED: Final = struct.Struct("=iII")


def check_path(path: str) -> int:
    """Return the uid that owns the socket at `path`, if the path can be trusted.

    Raise as `check_place` does, and `ConfigurationError` if it cannot be the path of a socket.
    """
    _check_name(path)
    status = check_place(path)
    if not stat.S_ISSOCK(status.st_mode):
        raise _impostor(f"'{path}' is not a socket")
    return status.st_uid


def check_place(path: str) -> os.stat_result:
    """Return the status of what is at `path`, if nobody can have put it there who is not vouched for.

    `path` is absolute. Raise `UnreachableError` (IMPOSTOR) if somebody else could have, and `OSError` as `lstat` does,
    above all `FileNotFoundError`.
    """
    here, ahead, links = "/", _steps(path), 0
    status = os.lstat(here)
    trusted = {0, os.geteuid()} - {UNMAPPED_UID}
    _check_owner(here, status, trusted, vouched=False)
    while ahead:
        vouched = _is_exclusive(here, status)
        entry = _descend(here, ahead.pop())
        found = os.lstat(entry)
        _check_owner(entry, found, trusted, vouched=vouched)
        if not stat.S_ISLNK(found.st_mode):
            here, status = entry, found
            continue
        links += 1
        if links > _MAX_LINKS:
            raise _impostor(f"'{path}' leads through too many symbolic links")
        target = os.readlink(entry)  # noqa: PTH115 - pathlib is not loaded at every login
        ahead += _steps(target)
        if target.startswith("/"):
            here, status = "/", os.lstat("/")
    return status


def check_server(connection: socket.socket, path: str, owner: int) -> None:
    """Raise `UnreachableError` (IMPOSTOR) unless root or `owner`, from `check_path`, listens at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(raw)
    if uid not in {0, owner} or uid == UNMAPPED_UID:
        raise _impostor(f"user {uid} answers at '{path}', which belongs to user {owner}")


def _check_name(path: str) -> None:
    if path.startswith(("@", "\0")):
        raise _impostor("an abstract socket belongs to whoever binds it first")
    if not path.startswith("/") or "\0" in path:
        raise ConfigurationError("the socket must be given as an absolute path", where=repr(path))
    if len(os.fsencode(path)) > MAX_PATH:
        raise ConfigurationError(f"a socket's path can have {MAX_PATH} bytes at most: use a shorter one", where=path)


def _steps(path: str) -> list[str]:
    """The names in `path`, the last one first: a stack to be popped from."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _descend(here: str, name: str) -> str:
    if name == "..":
        return os.path.dirname(here)
    return f"{here.rstrip('/')}/{name}"


def _check_owner(here: str, status: os.stat_result, trusted: set[int], *, vouched: bool) -> None:
    """Refuse an owner whom nobody vouches for; one whom the directory above vouches for is trusted from here on."""
    owner = status.st_uid
    if owner in trusted:
        return
    if not vouched or owner == UNMAPPED_UID:
        raise _impostor(f"'{here}' belongs to user {owner}, who could have put it there without being asked")
    trusted.add(owner)


def _is_exclusive(here: str, status: os.stat_result) -> bool:
    """Whether nobody but its owner and root can add entries to the directory `here`.

    In a sticky one others can add entries but not replace them, so each entry must then stand for itself.
    """
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if others_write and not status.st_mode & stat.S_ISVTX:
        raise _impostor(f"the directory '{here}' can be changed by others (mode {stat.S_IMODE(status.st_mode):o})")
    return not others_write


def _impostor(finding: str) -> UnreachableError:
    return UnreachableError(
        ErrorCode.IMPOSTOR,
        f"what answers may not be the broker: {finding}. Check GATEPASS_SOCKET, and who changed that path",
    )
