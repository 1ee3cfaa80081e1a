"""What systemd is asked, and told."""

from __future__ import annotations

import hashlib
import shlex
from contextlib import suppress
from typing import Final, NamedTuple

from gatepass.client import Client
from gatepass.errors import ErrorCode, GatepassError
from gatepass_broker.install.commands import CommandError, complete, printable, run

BROKER_SECONDS: Final = 20.0
"""For the broker to answer after its start."""
_JOURNAL_LINES: Final = 15
_RUNNING: Final = frozenset({"active", "activating", "reloading", "refreshing"})


class UnitState(NamedTuple):
    """A unit as systemd knows it."""

    loaded: bool
    active: bool
    running: bool
    """Active, or on the way to it: also one that fails, and is started again and again."""
    user: str
    environment: dict[str, str]
    """`Environment=` of a service, all drop-ins included."""


class UnitError(GatepassError):
    """A unit does not run. The message ends with the end of its journal."""

    def __init__(self, unit: str, reason: str) -> None:
        said = printable(_journal(unit)).rstrip()
        why = f"; the end of its journal:\n{said}" if said else f": {reason}"
        super().__init__(ErrorCode.INTERNAL, f"{unit} does not run{why}")


def systemctl(*arguments: str) -> str:
    """Run systemctl and return its stdout. Raise `CommandError`."""
    return run("systemctl", "--no-ask-password", *arguments)


def state(unit: str) -> UnitState:
    """Return how a unit is. Raise `CommandError`."""
    return unit_state(systemctl("show", "--property=LoadState,ActiveState,User,Environment", unit))


def unit_state(shown: str) -> UnitState:
    """Return what the output of `systemctl show` says."""
    values = dict(line.partition("=")[::2] for line in shown.splitlines())
    return UnitState(
        loaded=values.get("LoadState") == "loaded",
        active=values.get("ActiveState") == "active",
        running=values.get("ActiveState") in _RUNNING,
        user=values.get("User", ""),
        environment=dict(word.partition("=")[::2] for word in _words(values.get("Environment", ""))),
    )


def need_reload(*units: str) -> bool:
    """Whether systemd knows of a unit's files otherwise than they are now. Raise `CommandError`."""
    return bool(units) and "yes" in systemctl("show", "--property=NeedDaemonReload", "--value", *units).split()


def change(verb: str, *units: str) -> None:
    """Have systemd start, restart or stop units and wait for it. Raise `UnitError` for the first that does not run."""
    try:
        systemctl(verb, *units)
    except CommandError as error:
        raise _first_fault(units, error) from None


def end(unit: str) -> None:
    """Stop a unit for good, and let systemd forget that it ever failed. Raise `CommandError`."""
    systemctl("disable", "--now", unit)
    with suppress(CommandError):  # it has not failed
        systemctl("is-failed", "--quiet", unit)
        systemctl("reset-failed", unit)


def check_active(*units: str) -> None:
    """Raise `UnitError` for the first unit that is not active."""
    for unit in units:
        try:
            systemctl("is-active", unit)
        except CommandError as error:
            raise UnitError(unit, error.message) from None


def wait_for_broker(socket: str) -> None:
    """Raise `GatepassError` if the broker does not answer."""
    with Client(socket, BROKER_SECONDS) as client:
        client.status()


def fingerprint(*parts: bytes | str) -> str:
    """Return what stands for all that a unit runs: when it is another, the unit has to be restarted."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(f"{len(data)}:".encode() + data)
    return whole.hexdigest()


def _first_fault(units: tuple[str, ...], error: CommandError) -> GatepassError:
    for unit in units:
        if not state(unit).active:
            return UnitError(unit, error.message)
    return error


def _journal(unit: str) -> str:
    """The end of a unit's journal. Where there is none the error itself has to do."""
    command = ("journalctl", "--no-pager", f"--lines={_JOURNAL_LINES}", "--output=short-iso", f"--unit={unit}")
    try:
        return complete(command, environment={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}, timeout=20).stdout
    except CommandError:
        return ""


def _words(text: str) -> list[str]:
    """Split what systemd quotes as a shell would."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()
