"""One person's own machine: an OpenClaw as people have it, and gatepass as `gatepass openclaw setup` puts it there."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from e2e.openclaw_config import USER
from e2e.openclaw_install import OpenClawInstall
from e2e.openclaw_instance import OpenClawInstance
from e2e.stack import Daemon, GatepassInstall, free_port

# As people write it: with comments, and what neither we nor these tests care about.
FRESH = """\
// my gateway
{
  gateway: {
    mode: "local",
    bind: "loopback",
    port: PORT, // dialled by everything here
    auth: { mode: "token", token: "${OLD_TOKEN}" },
    controlUi: { enabled: false },
  },
  discovery: { mdns: { mode: "off" } }, /* quiet */
  env: { vars: { OLD_TOKEN: "a-shared-secret" } },
}
"""


class Person:
    """An account with an OpenClaw, and the commands that setup told it to run."""

    def __init__(self, gatepass: GatepassInstall, install: OpenClawInstall) -> None:
        self.gatepass = gatepass
        self.port, self.second_port = free_port(), free_port()
        self.openclaw = OpenClawInstance(install, port=self.second_port)
        self.home, self.config = self.openclaw.home, self.openclaw.config_path
        self.openclaw.write_file(self.config.name, FRESH.replace("PORT", str(self.port)))
        self.openclaw.write_file("openclaw", f'#!/bin/sh\nexec {shlex.quote(str(install.entry))} "$@"\n', mode=0o755)
        runtime = self.home / "run"
        runtime.mkdir(mode=0o700)
        os.chown(runtime, self.openclaw.account.uid, self.openclaw.account.gid)
        self.daemons: dict[str, Daemon] = {}

    def __enter__(self) -> Person:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.openclaw.stop()
        for daemon in self.daemons.values():
            daemon.stop()
        self.openclaw.close()

    def environment(self) -> dict[str, str]:
        """Return what a login session has."""
        return {**self.openclaw.environment(), "XDG_RUNTIME_DIR": str(self.home / "run")}

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `gatepass openclaw ARGUMENTS`."""
        command = ("gatepass", "openclaw", arguments[0], "--openclaw", str(self.home / "openclaw"), *arguments[1:])
        return self.gatepass.run(self.openclaw.account, *command, env={**self.environment(), **variables}, timeout=120)

    def setup(self, *options: str) -> dict[str, Any]:
        """Run `gatepass openclaw setup --write` and return what it says."""
        done = self.run(
            "setup", "--write", "--loopback-user", USER, "--second-port", str(self.second_port), "--json", *options
        )
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    def findings(self, status: int) -> list[dict[str, str]]:
        """Run `gatepass openclaw check`, which must exit with `status`, and return its findings."""
        done = self.run("check", "--json", "--timeout", "1")
        assert done.returncode == status, done.stdout + done.stderr
        found: list[dict[str, str]] = json.loads(done.stdout)["findings"]
        return found

    def start(self, name: str, command: str) -> Daemon:
        """Start one of gatepass's programs with the command that setup named, and wait until it is ready."""
        session = [f"{key}={value}" for key, value in self.environment().items()]
        self.daemons[name] = daemon = Daemon(
            ["/usr/bin/env", "-i", *session, *shlex.split(command)], self.openclaw.account, self.home / f"{name}.log"
        )
        daemon.start()
        return daemon

    def files(self) -> dict[Path, tuple[bytes, int]]:
        """Return every file that setup is about, with when it was written."""
        paths = [self.config, *self.home.glob("openclaw.json.before*"), *(self.home / "state").glob("gatepass-*")]
        paths += self.home.glob(".config/gatepass/*")
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}
