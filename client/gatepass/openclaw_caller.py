"""Who runs `gatepass openclaw secret`: an OpenClaw command, which gets a token, or the gateway, which must not.

What the gateway resolves becomes its own fallback password, so a token in its hands is a password for everybody who
learns it. Seen with openclaw 2026.9.6, where both are `node` processes that rename themselves and so overwrite argv:

- A command starts the helper itself, as `openclaw-<its first word>` or `openclaw`. Its parent is mostly a launcher,
  which still shows `node …/openclaw.mjs <words>`.
- The gateway starts the helper through `node …/dist/process/spawn-broker/worker.js`, a child of its own. Only where
  that could not be started, it does so itself, as `openclaw-gateway`. It never has a launcher.
- `openclaw-gateway` is also the name of commands such as `gateway call`: only a launcher's words tell.
- The gateway sets OPENCLAW_GATEWAY_PORT for its children. Who set it itself does not have it in the environment that
  it was started with; an agent's command inherited it, so there it is in both. (`passEnv` must name it.)

The marks are independent, and each is enough for a refusal. Whatever is not clearly a command counts as the gateway:
the worst is then a command that does not log in and says why. Nobody is kept from a token by this: any process of
this user may ask the broker itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

MAX_ANCESTORS: Final = 32
PORT_VARIABLE: Final = "OPENCLAW_GATEWAY_PORT"

_SPAWN_BROKER: Final = "/spawn-broker/worker.js"
_GATEWAY_TITLE: Final = "openclaw-gateway"
_RUNTIMES: Final = frozenset({"node", "nodejs", "bun"})
_HOSTS_OF_A_GATEWAY: Final = frozenset({"configure", "onboard", "setup"})
"""Commands that may run a gateway within themselves."""


class ProcessInfo(NamedTuple):
    """A process above this one, as /proc shows it."""

    arguments: tuple[str, ...]
    """Its argv without empty strings; a process can overwrite it."""
    executable: str | None = None
    """None where that may not be read."""
    variables: frozenset[str] | None = frozenset()
    """Names in the environment that it was started with, None where that may not be read."""


def asked_by_gateway(ancestors: Sequence[ProcessInfo], environ: Mapping[str, str]) -> bool:
    """Whether the gateway may have started this process. `ancestors` begins with its parent, `environ` is its own."""
    for index, process in enumerate(ancestors):
        if any(argument.endswith(_SPAWN_BROKER) for argument in process.arguments):
            return True
        title, words = _title(process), _launcher_words(process)
        if title is None and words is None:
            continue  # a shell or another wrapper of the helper
        if PORT_VARIABLE in environ and PORT_VARIABLE not in (process.variables or ()):
            return True
        if words is None and title == _GATEWAY_TITLE:
            words = _words_of_launcher(process, ancestors[index + 1 :])
        return words is not None and not _is_command(words)
    return True


def ancestors() -> tuple[ProcessInfo, ...]:
    """Return the processes above this one, its parent first; nothing if the parent ended meanwhile (proc(5))."""
    parent = os.getppid()
    found = tuple(_walk(parent))
    return found if os.getppid() == parent else ()  # while it lives, its pid is nobody else's


def _title(process: ProcessInfo) -> str | None:
    """The name that an OpenClaw process gave itself."""
    first = process.arguments[0] if process.arguments else ""
    return first if first == "openclaw" or first.startswith("openclaw-") else None


def _launcher_words(process: ProcessInfo) -> tuple[str, ...] | None:
    """The words after `…/openclaw.mjs` of a process that has not renamed itself.

    Only where node runs it: a person's own launcher for the secret may well be called `openclaw` too.
    """
    if not process.arguments or os.path.basename(process.arguments[0]) not in _RUNTIMES:
        return None
    for index, argument in enumerate(process.arguments[1:], 1):
        if argument.endswith(("/openclaw.mjs", "/openclaw")):
            return process.arguments[index + 1 :]
        if not argument.startswith("-"):
            return None
    return None


def _words_of_launcher(process: ProcessInfo, above: Sequence[ProcessInfo]) -> tuple[str, ...]:
    """The words of the launcher of `process`, or none at all if it has no launcher."""
    if not above or process.executable is None or above[0].executable != process.executable:
        return ()
    return _launcher_words(above[0]) or ()


def _is_command(words: tuple[str, ...]) -> bool:
    """Whether `words` surely start a command: a bare `gateway`, `gateway run` and leading options may not."""
    if not words or words[0].startswith("-") or words[0] in _HOSTS_OF_A_GATEWAY:
        return False
    following = words[1] if len(words) > 1 else "run"
    return words[0] != "gateway" or not (following == "run" or following.startswith("-"))


def _walk(pid: int) -> Iterator[ProcessInfo]:
    for _ in range(MAX_ANCESTORS):
        if pid <= 1:
            return
        try:
            arguments, status = _read(pid, "cmdline"), _read(pid, "stat")
        except OSError:
            return
        yield ProcessInfo(_strings(arguments), _executable(pid), _variables(pid))
        # The name, in parentheses, may itself hold `) (`: what follows the last one is fixed (proc(5)).
        pid = int(status.rpartition(b")")[2].split()[1])


def _executable(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/exe")  # noqa: PTH115 - pathlib is not loaded at every login
    except OSError:
        return None


def _variables(pid: int) -> frozenset[str] | None:
    try:
        return frozenset(entry.partition("=")[0] for entry in _strings(_read(pid, "environ")))
    except OSError:
        return None


def _strings(data: bytes) -> tuple[str, ...]:
    return tuple(os.fsdecode(part) for part in data.split(b"\0") if part)


def _read(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb") as file:  # noqa: PTH123 - as above
        return file.read()
