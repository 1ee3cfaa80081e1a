"""The launcher: the file that OpenClaw starts for a secret, in the form that it demands.

OpenClaw's rules (its docs, gateway/secrets): an absolute path, no symbolic link, a regular file of the user who runs
OpenClaw, which nobody else can write. An installed `gatepass` is often root's, or a link, so a launcher it is.
"""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

NAME: Final = "gatepass-secret"
MODE: Final = 0o700


class LauncherFacts(NamedTuple):
    """What lies at the launcher's path; `status` of a link is its own."""

    path: str
    exists: bool
    mode: int = 0
    """As in `stat`, with the kind of file."""
    uid: int = 0
    text: str | None = None
    """None where it cannot be read."""


def launcher_text(gatepass: str, broker_socket: str | None) -> str:
    """Return the launcher of the command at path `gatepass`."""
    socket = "" if broker_socket is None else f" --socket {shlex.quote(broker_socket)}"
    return (
        "#!/bin/sh\n"
        "# Written by 'gatepass openclaw setup': OpenClaw runs only what its own user owns.\n"
        f'exec {shlex.quote(gatepass)} openclaw secret{socket} "$@"\n'
    )


def launcher_faults(facts: LauncherFacts, uid: int) -> Iterator[tuple[str, str]]:
    """Yield what OpenClaw would refuse about the launcher, and what to do. `uid` is who runs OpenClaw."""
    if not facts.exists:
        yield "the launcher is missing", "gatepass openclaw setup --write"
        return
    if not stat.S_ISREG(facts.mode):
        kind = "a symbolic link" if stat.S_ISLNK(facts.mode) else "not a regular file"
        yield f"the launcher is {kind}, which OpenClaw refuses", "remove it, then: gatepass openclaw setup --write"
        return
    if facts.uid != uid:
        owner = "root" if facts.uid == 0 else f"uid {facts.uid}"
        yield (
            f"the launcher belongs to {owner}; OpenClaw runs only what its own user owns (uid {uid})",
            f"sudo rm {shlex.quote(facts.path)}, then as the user who runs OpenClaw: gatepass openclaw setup --write",
        )
        return
    if facts.mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield "others can write to the launcher, which OpenClaw refuses", f"chmod 700 {shlex.quote(facts.path)}"
    if not facts.mode & stat.S_IXUSR:
        yield "the launcher cannot be executed", f"chmod 700 {shlex.quote(facts.path)}"
