"""Looking at the machine: its service manager, its accounts, its interpreter."""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import shutil
import stat
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from gatepass_broker.install.commands import CommandError, run
from gatepass_broker.install.release import base_interpreter

BOOTED: Final = Path("/run/systemd/system")
"""There if systemd is the service manager: sd_booted(3)."""

PTRACE_SCOPE: Final = Path("/proc/sys/kernel/yama/ptrace_scope")

FIRST_UNPRIVILEGED_PORT: Final = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")

_OUT_OF_REACH: Final = ("/root", "/home", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - not to be written to
"""What `ProtectHome=` and `PrivateTmp=` of our units hide."""


class Account(NamedTuple):
    """A user of this machine."""

    name: str
    uid: int
    gid: int
    home: str
    groups: tuple[int, ...] = ()


def find_account(name: str) -> Account | None:
    """Return the account of that name."""
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):
        return None
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir, tuple(groups))


def find_account_of(uid: int | None) -> Account | None:
    """Return the account with that number; None for None."""
    try:
        return None if uid is None else find_account(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return None


def find_group(name: str) -> int | None:
    """Return the gid of a group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def systemd_version() -> int | None:
    """Return the version of systemd, None if there is none."""
    try:
        words = run("systemctl", "--version").split()
    except CommandError:
        return None
    return int(words[1]) if len(words) > 1 and words[1].isdecimal() else None


def lets_programs_attach(scope: Path = PTRACE_SCOPE) -> bool:
    """Whether one account's programs may attach to each other, and so be each other. Debian's kernel lets them."""
    try:
        return scope.read_text().strip() == "0"
    except OSError:  # a kernel without Yama
        return True


def first_unprivileged_port(setting: Path = FIRST_UNPRIVILEGED_PORT) -> int:
    """Return the first port that any user can take. Some machines lower it, for containers without root."""
    try:
        return int(setting.read_text())
    except OSError:  # a kernel before 4.11
        return 1_024


def has_library(name: str) -> bool:
    """Whether a shared library can be loaded."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def free_bytes(path: Path) -> int:
    """Return the free space where `path` is or will be."""
    return shutil.disk_usage(nearest(path)).free


def nearest(path: Path) -> Path:
    """Return `path`, or the one nearest above it that there is."""
    return next(entry for entry in (path, *path.parents) if entry.exists())


def interpreter_faults() -> Iterator[str]:
    """Yield why services could not run this Python; nothing if they can."""
    for path in dict.fromkeys((base_interpreter(), Path(sysconfig.get_path("stdlib")).resolve())):
        if reason := _why_out_of_reach(path):
            yield (
                f"{path}: services cannot run this Python: {reason}. Use the system's: `/usr/bin/python3 -m venv DIR`, "
                "install gatepass there, and run this from DIR/bin"
            )
            return


def _why_out_of_reach(path: Path) -> str | None:
    for hidden in _OUT_OF_REACH:
        if path.is_relative_to(hidden):
            return f"{hidden} is hidden from them"
    for entry in (path, *path.parents):
        if not entry.stat().st_mode & stat.S_IXOTH:
            return f"others than its owner may not enter or execute {entry}"
    return None
