"""OpenClaw on this machine: whose it is, and what is done in that account's own name.

Whatever touches files of that account runs as that account, in a process that root has given up for it: a symbolic
link there leads it nowhere that the account could not go by itself.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from gatepass.errors import ConfigurationError
from gatepass_broker.install.commands import CommandError, Identity, complete, printable
from gatepass_broker.install.layout import BROKER_SOCKET, Layout
from gatepass_broker.install.observe import Account
from gatepass_broker.install.request import ManagerName, Request
from gatepass_broker.install.services import UnitState, state, unit_state

SETUP_SECONDS: Final = 300.0
"""OpenClaw takes seconds for each of several commands, and completes its installation at the first."""

_READ_SECONDS: Final = 20.0
_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_PRINT: Final = "import sys; sys.stdout.write(open(sys.argv[1], encoding='utf-8').read())"
_NOTHING: Final = "there is nothing to undo"
_SHOW: Final = ("systemctl", "--user", "show", "--property=LoadState,ActiveState,User,Environment")


class OpenClaw(NamedTuple):
    """An OpenClaw, and how its commands are run."""

    account: Account
    unit: str
    manager: ManagerName
    environment: dict[str, str]
    """Of its commands. May hold secrets: never shown."""
    command: str | None
    """Its path, None where it is found by PATH."""
    has_unit: bool = True
    """Whether there is such a unit, as far as that can be learnt."""

    @property
    def is_persons(self) -> bool:
        """Whether a person's own service manager runs it."""
        return self.manager == "person"


def find_openclaw(request: Request, account: Account) -> OpenClaw:
    """Return OpenClaw as the options, its unit and the account say. Raise `CommandError`."""
    system = state(request.unit)
    manager: ManagerName = request.manager or ("system" if system.loaded else "person")
    found = system if manager == "system" else _persons_unit(account, request.unit)
    variables = environment(request, account, found.environment)
    return OpenClaw(account, request.unit, manager, variables, request.openclaw, found.loaded)


def environment(request: Request, account: Account, declared: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of OpenClaw's commands. `declared` is what its unit says."""
    runtime = f"/run/user/{account.uid}"
    path = ":".join(filter(None, (declared.get("PATH"), f"{account.home}/.local/bin", _PATH)))
    said = {"OPENCLAW_CONFIG_PATH": request.openclaw_config, "OPENCLAW_STATE_DIR": request.openclaw_state_dir}
    return {
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "LANG": "C.UTF-8",
        **({"XDG_RUNTIME_DIR": runtime} if Path(runtime).is_dir() else {}),
        **declared,
        "PATH": path,
        **{name: value for name, value in said.items() if value is not None},
    }


def run_as(
    openclaw: OpenClaw, *command: str | Path, timeout: float = SETUP_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run a command as the account that runs OpenClaw, to its end. Raise `CommandError` if it cannot be run."""
    account = openclaw.account
    is_other = account.uid != os.geteuid()
    identity = Identity(account.uid, account.gid, account.groups) if is_other else None
    return complete(command, environment=openclaw.environment, timeout=timeout, identity=identity)


class SetUp(NamedTuple):
    """What setup has done."""

    proxy_text: str
    """The proxy's configuration, as OpenClaw's account has written it."""
    notes: tuple[str, ...]
    is_new: bool
    """Whether OpenClaw's own configuration was changed."""


def setup_arguments(openclaw: OpenClaw, request: Request) -> tuple[str, ...]:
    """Return the arguments of the `gatepass` that says what has to change in OpenClaw's configuration."""
    return (
        *("openclaw", "setup", "--json", "--way", "redirect"),
        *("--loopback-user", str(request.loopback_user), "--second-port", str(request.proxy_port)),
        *("--socket", BROKER_SOCKET, *_command_option(openclaw)),
        *(word for proxy in request.proxies for word in ("--reverse-proxy", str(proxy))),
    )


def rehearse(release: Path, openclaw: OpenClaw, request: Request) -> None:
    """Look whether OpenClaw can be set up, as its account, with a release that is not in use yet. Raise as `set_up`."""
    python, gatepass = release / "bin" / "python", str(release / "bin" / "gatepass")
    _succeed(openclaw, run_as(openclaw, python, "-I", gatepass, *setup_arguments(openclaw, request)))


def set_up(layout: Layout, openclaw: OpenClaw, request: Request) -> SetUp:
    """Change OpenClaw's configuration, as its account. Raise `ConfigurationError`, `CommandError`."""
    command = (str(layout.command("gatepass")), *setup_arguments(openclaw, request), "--write")
    done = _succeed(openclaw, run_as(openclaw, *command))
    try:
        answer = json.loads(done.stdout)
        path = _proxy_file(answer)
        notes, is_new = tuple(printable(str(note)) for note in answer["notes"]), bool(answer["changes"])
    # That account may be hostile: its answer can be anything that is JSON, and deeper than anything can be read.
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, StopIteration):
        raise CommandError(f"'gatepass openclaw setup' answered what it should not: {_said(done)}") from None
    return SetUp(read_as(layout, openclaw, path), notes, is_new)


def read_as(layout: Layout, openclaw: OpenClaw, path: str) -> str:
    """Return a file of the account's, read by itself: there may be a link to what only root can read.

    Raise `CommandError`.
    """
    done = run_as(openclaw, layout.command("python"), "-I", "-c", _PRINT, path, timeout=_READ_SECONDS)
    if done.returncode != 0:
        raise CommandError(f"{printable(path)} cannot be read by {openclaw.account.name}: {_said(done)}")
    return done.stdout


def undo_setup(layout: Layout, openclaw: OpenClaw, *, discard_changes: bool) -> None:
    """Put OpenClaw's configuration back, as its account. Raise `ConfigurationError`, `CommandError`."""
    options = ("--discard-changes",) if discard_changes else ()
    command = (layout.command("gatepass"), "openclaw", "setup", "--undo", *options, *_command_option(openclaw))
    done = run_as(openclaw, *command)
    if _NOTHING not in done.stderr:
        _succeed(openclaw, done)


def tell_persons_manager(openclaw: OpenClaw, *arguments: str) -> None:
    """Run `systemctl --user` in the person's own service manager. Raise `CommandError`."""
    done = run_as(openclaw, "systemctl", "--user", *arguments, timeout=60)
    if done.returncode != 0:
        raise CommandError(f"`systemctl --user {' '.join(arguments)}` as {openclaw.account.name}: {_said(done)}")


def has_manager(openclaw: OpenClaw) -> bool:
    """Whether the person's own service manager runs."""
    return state(f"user@{openclaw.account.uid}.service").running


def _persons_unit(account: Account, unit: str) -> UnitState:
    """Return how a person's own unit is, as far as that can be learnt: while nobody is logged in, by its file alone."""
    runtime = f"/run/user/{account.uid}"
    known = {"HOME": account.home, "PATH": _PATH, "XDG_RUNTIME_DIR": runtime, "LANG": "C.UTF-8"}
    shown = ""
    if Path(runtime).is_dir():
        done = run_as(OpenClaw(account, unit, "person", known, None), *_SHOW, unit, timeout=20)
        shown = done.stdout if done.returncode == 0 else ""
    found = unit_state(shown)
    return found._replace(loaded=found.loaded or os.path.lexists(f"{account.home}/.config/systemd/user/{unit}"))


def _command_option(openclaw: OpenClaw) -> tuple[str, ...]:
    return ("--openclaw", openclaw.command) if openclaw.command else ()


def _succeed(openclaw: OpenClaw, done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    if done.returncode != 0:
        raise ConfigurationError(_said(done), where=f"OpenClaw of {openclaw.account.name}")
    return done


def _proxy_file(answer: Any) -> str:  # noqa: ANN401 - JSON
    """Return where setup has put the proxy's configuration: the step that starts the proxy names it."""
    commands = (shlex.split(step["command"]) for step in answer["steps"])
    return next(words[2] for words in commands if words[1:2] == ["--config"])


def _said(done: subprocess.CompletedProcess[str]) -> str:
    text = printable(done.stderr.strip() or done.stdout.strip())
    return text.removeprefix("gatepass: ") or f"exit status {done.returncode}"
