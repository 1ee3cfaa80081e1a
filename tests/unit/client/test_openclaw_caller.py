"""The chains of processes are those that were seen above the helper with openclaw 2026.9.6."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gatepass.openclaw_caller import ProcessInfo, ancestors, asked_by_gateway

NODE = "/usr/bin/node"
ENTRY = "/usr/lib/node_modules/openclaw/openclaw.mjs"
WORKER = ProcessInfo((NODE, "/usr/lib/node_modules/openclaw/dist/process/spawn-broker/worker.js"), NODE)
GATEWAY = ProcessInfo(("openclaw-gateway",), NODE)
SHELL = ProcessInfo(("bash",), "/usr/bin/bash")
PORT = {"OPENCLAW_GATEWAY_PORT": "18789"}


def launcher(*words: str, executable: str = NODE, port: bool = False) -> ProcessInfo:
    return ProcessInfo((NODE, ENTRY, *words), executable, frozenset(PORT if port else ()))


def titled(title: str, *, port: bool = False) -> ProcessInfo:
    return ProcessInfo((title,), NODE, frozenset(PORT if port else ()))


COMMANDS = {
    "cron list": [titled("openclaw-cron"), launcher("cron", "list"), SHELL],
    "health": [titled("openclaw"), launcher("health"), SHELL],
    "gateway status has no launcher": [titled("openclaw"), SHELL],
    "gateway call": [titled("openclaw-gateway"), launcher("gateway", "call", "status"), SHELL],
    "a launcher that has not renamed itself": [launcher("cron", "list"), SHELL],
    "the helper in a shell": [SHELL, titled("openclaw-cron"), launcher("cron", "list")],
}

AGENT_COMMANDS = {
    "cron list": [titled("openclaw-cron", port=True), launcher("cron", "list", port=True), SHELL, WORKER, GATEWAY],
    "gateway call": [titled("openclaw-gateway", port=True), launcher("gateway", "call", "x", port=True), SHELL, WORKER],
    "gateway status": [titled("openclaw", port=True), SHELL, WORKER, GATEWAY],
}

GATEWAYS = {
    "through its spawn broker": [WORKER, GATEWAY, SHELL],
    "whose spawn broker's parent ended": [WORKER],
    "by itself": [GATEWAY, SHELL],
    "before it took its name": [launcher("gateway", "run"), SHELL],
    "started bare": [launcher("gateway"), SHELL],
    "with options": [launcher("gateway", "--port", "1"), SHELL],
    "with options first": [launcher("--profile", "x", "gateway"), SHELL],
    "below a launcher of its own": [GATEWAY, launcher("gateway", "run"), SHELL],
    "below what only looks like a launcher": [GATEWAY, launcher("gateway", "call", "x", executable="/bin/bash")],
    "below a launcher that cannot be seen": [GATEWAY._replace(executable=None), launcher("gateway", "call", "x")],
    "nobody of OpenClaw": [SHELL],
    "nobody at all": [],
    "an empty argv": [ProcessInfo(())],
}


@pytest.mark.parametrize("chain", COMMANDS.values(), ids=COMMANDS.keys())
def test_commands_get_a_token(chain: list[ProcessInfo]) -> None:
    assert not asked_by_gateway(chain, {})


@pytest.mark.parametrize("chain", AGENT_COMMANDS.values(), ids=AGENT_COMMANDS.keys())
def test_commands_of_an_agent_get_a_token(chain: list[ProcessInfo]) -> None:
    assert not asked_by_gateway(chain, PORT)


@pytest.mark.parametrize("chain", GATEWAYS.values(), ids=GATEWAYS.keys())
@pytest.mark.parametrize("environ", [{}, PORT], ids=["scrubbed", "with port"])
def test_whatever_may_be_the_gateway_gets_none(chain: list[ProcessInfo], environ: dict[str, str]) -> None:
    assert asked_by_gateway(chain, environ)


@pytest.mark.parametrize("variables", [frozenset[str](), None], ids=["without", "unreadable"])
def test_who_set_the_port_itself_is_the_gateway_whatever_its_name(variables: frozenset[str] | None) -> None:
    assert asked_by_gateway([ProcessInfo(("openclaw",), NODE, variables), SHELL], PORT)


def test_the_walk_begins_with_the_parent() -> None:
    found = ancestors()
    assert found[0].executable == str(Path(f"/proc/{os.getppid()}/exe").readlink())


def test_a_process_name_cannot_lead_the_walk_astray() -> None:
    show = "from gatepass.openclaw_caller import ancestors; print([a.arguments[-1] for a in ancestors()][:2])"
    outer = (
        "import subprocess, sys; open('/proc/self/comm', 'w').write(') 1 (');"
        f"subprocess.run([sys.executable, '-c', {show!r}, 'inner'])"
    )
    done = subprocess.run([sys.executable, "-c", outer, "outer"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("['outer', ")


def test_a_launcher_of_ones_own_that_is_called_openclaw_hides_no_gateway() -> None:
    own = ProcessInfo(("/bin/sh", "/home/alice/bin/openclaw", "secret"), "/bin/sh")
    assert asked_by_gateway([own, WORKER, GATEWAY], {})
    assert asked_by_gateway([own, GATEWAY], PORT)


@pytest.mark.parametrize("word", ["onboard", "setup", "configure"])
def test_a_command_that_may_run_a_gateway_within_itself_counts_as_one(word: str) -> None:
    assert asked_by_gateway([ProcessInfo((NODE, ENTRY, word), NODE), SHELL], {})
