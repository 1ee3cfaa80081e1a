"""Run a command as if it had been run directly: its signals, its exit status, and no orphan left behind."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from gatepass.cli.manners import CommandError
from gatepass.parent_death import ends_with_parent

NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
SIGNALLED: Final = 128
"""Plus the signal's number, as shells do."""

_FORWARDED: Final = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
    }
)
_AWAITED: Final = _FORWARDED | {signal.SIGCHLD}

_SENT_BY_KERNEL: Final = 0x80  # SI_KERNEL of <asm-generic/siginfo.h>, which the module `signal` does not have


def run_child(command: Sequence[str], environment: Mapping[str, str], when_started: Callable[[], None]) -> int:
    """Run `command` to its end and return its exit status, 128+N if signal N ended it.

    `when_started` is called once it runs, and may start threads. Must be called by the main thread, while it is the
    only one: the child is sent SIGTERM should this thread die before it. Raise `CommandError` with the status of a
    shell, 127 or 126, if the command cannot be started.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it would make the exit status vanish
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    try:
        child = _start(command, environment, mask)
        when_started()
        return _wait(child)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start(
    command: Sequence[str], environment: Mapping[str, str], mask: set[int | signal.Signals]
) -> subprocess.Popen[bytes]:
    end_with_us = ends_with_parent(signal.SIGTERM)

    def prepare() -> None:
        end_with_us()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    try:
        return subprocess.Popen(command, env=environment, preexec_fn=prepare)  # noqa: PLW1509 - there are no threads yet
    except FileNotFoundError:
        raise CommandError(f"'{command[0]}' was not found", NOT_FOUND) from None
    except (OSError, ValueError) as error:
        raise CommandError(f"'{command[0]}' cannot be executed: {error}", NOT_EXECUTABLE) from None


def _wait(child: subprocess.Popen[bytes]) -> int:
    """Pass signals on until the child has ended. All are blocked, so none can come between two steps."""
    while (status := child.poll()) is None:
        received = signal.sigwaitinfo(_AWAITED)
        if received.si_signo != signal.SIGCHLD and not _came_from_terminal(received):
            child.send_signal(received.si_signo)
    return status if status >= 0 else SIGNALLED - status


def _came_from_terminal(received: signal.struct_siginfo) -> bool:
    """Whether the kernel sent the signal: then it went to the whole process group, and the child has it already."""
    return received.si_code == _SENT_BY_KERNEL and received.si_signo != signal.SIGHUP
