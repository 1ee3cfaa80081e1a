"""Running the machine's own commands, and making what they say fit for a terminal."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from gatepass.errors import ErrorCode, GatepassError
from gatepass.parent_death import ends_with_parent

TIMEOUT: Final = 120.0
"""Seconds. The slowest, a service that starts, is given 30 by its unit."""

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""sudo and su differ about it, and `userdel` lies in sbin."""


class CommandError(GatepassError):
    """A command failed, or took too long. The message ends with the last line that it said."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.INTERNAL, message)


class Identity(NamedTuple):
    """Whom a process runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def run(*command: str | Path, timeout: float = TIMEOUT) -> str:
    """Run a command as root, with nothing of the caller's environment, and return its stdout. Raise `CommandError`."""
    done = complete(command, environment={"PATH": _PATH, "LANG": "C.UTF-8"}, timeout=timeout)
    if done.returncode != 0:
        raise CommandError(f"`{shown(command)}` failed: {last_line(done)}")
    return done.stdout


def complete(
    command: tuple[str | Path, ...],
    *,
    environment: Mapping[str, str],
    timeout: float = TIMEOUT,
    identity: Identity | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever that is. Raise `CommandError` if it cannot be run, or takes too long.

    With an `identity` root is given up for good before the command begins. It ends with this process, SIGKILL included:
    else it could do what the next run, or an undoing, takes for not done.
    """
    try:
        return subprocess.run(
            [str(word) for word in command],
            env=dict(environment),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            start_new_session=True,  # no terminal: what runs as another user could type into it
            user=identity.uid if identity else None,
            group=identity.gid if identity else None,
            extra_groups=list(identity.groups) if identity else None,
            umask=0o077 if identity else 0o022,
            preexec_fn=ends_with_parent(signal.SIGKILL),  # there are no threads
        )
    except subprocess.TimeoutExpired:
        raise CommandError(f"`{shown(command)}` took more than {timeout:.0f} s") from None
    except OSError as error:
        raise CommandError(f"`{command[0]}` cannot be run: {error.strerror}") from None


def shown(command: tuple[str | Path, ...]) -> str:
    """Return a command as a person types it, more or less."""
    return " ".join(str(word) for word in command)


def printable(text: str) -> str:
    """Return `text` without what a terminal would act upon: it may come from another user's program."""
    return "".join(character if character.isprintable() or character in "\n\t" else "?" for character in text)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a command said, on stderr if it said anything there."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return printable(lines[-1]) if lines else f"exit status {done.returncode}"
