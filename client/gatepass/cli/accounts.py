"""The accounts of this machine, as the name service knows them (getpwnam(3)): for command lines, and for lists."""

from __future__ import annotations

import os
import pwd
from typing import Final, NamedTuple

from gatepass.cli.manners import USAGE, CommandError

MAX_UID: Final = 2**32 - 2
"""The one above it means 'no user' (chown(2))."""


class Account(NamedTuple):
    """A user, as far as this machine knows them. None is unknown."""

    uid: int
    gid: int | None
    groups: tuple[int, ...] | None
    """What they would be in after logging in now."""


def find_account(user: str) -> Account:
    """Return the account of `user`, a name or a uid; a name comes first, as for chown(1). Raise `CommandError`."""
    entry = _entry(user)
    if entry is not None:
        groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
        return Account(entry.pw_uid, entry.pw_gid, tuple(sorted(groups)))
    if user.isascii() and user.isdecimal() and int(user) <= MAX_UID:
        return Account(int(user), None, None)
    raise CommandError(f"there is no user '{user}' on this machine", USAGE)


def user_name(uid: int | None) -> str:
    """Return the name of a user, for people: the number where it has no name."""
    if uid is None:
        return "unknown"
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def _entry(user: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(user)
    except (KeyError, ValueError):
        pass
    try:
        return pwd.getpwuid(int(user)) if user.isascii() and user.isdecimal() else None
    except (KeyError, OverflowError):
        return None
