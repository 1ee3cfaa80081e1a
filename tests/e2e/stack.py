"""The whole chain on one machine: broker, proxy and an unmodified OpenClaw, each as a user of its own (root only)."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from e2e.accounts import as_account
from e2e.model_server import ModelServer, Say
from e2e.openclaw_config import IDENTITY_SOURCE, OPERATOR_SCOPES, USER, Config, trusted_proxy_config
from e2e.openclaw_install import OpenClawInstall
from e2e.openclaw_instance import Account, OpenClawInstance

CHECKOUT = Path(__file__).resolve().parents[2]
OTHER_USER = "mallory@example.com"
READY_SECONDS = 20.0


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class GatepassInstall:
    """gatepass as a user installs it: a wheel of this checkout in a venv that every user can run."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "venv" / "bin"
        python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
        _uv("venv", "--python", python, str(directory / "venv"))
        locked = directory / "requirements.txt"
        _uv("export", "--frozen", "--extra", "all", "--no-default-groups", "--no-emit-project", "-o", str(locked))
        _uv("pip", "install", "--python", str(self.bin / "python"), "-r", str(locked))
        _uv("pip", "install", "--python", str(self.bin / "python"), "--no-deps", str(CHECKOUT))

    def run(
        self, account: Account, *command: str, env: Mapping[str, str], stdin: str = "", timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run one of the installed commands to its end as `account`."""
        return subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd="/",
            env=dict(env),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **as_account(account),
        )


class Daemon:
    """A process that logs `ready` to stderr when it serves."""

    def __init__(self, command: Sequence[str | Path], account: Account, log: Path) -> None:
        self.log = log
        self.account = account
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        offset = len(self.log.read_text()) if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd="/",
                env={"PATH": "/usr/bin:/bin"},
                stderr=log,
                stdin=subprocess.DEVNULL,
                **as_account(self.account),
            )
        deadline = time.monotonic() + READY_SECONDS
        while "event=ready" not in self.log.read_text()[offset:]:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self._command[0]} did not get ready:\n{self.log.read_text()[offset:]}")
            time.sleep(0.02)

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """End it and wait for its end."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal_number)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(
                f"{self._command[0]} did not end on {signal_number}:\n{self.log.read_text()}"
            ) from None


class Stack:
    """Everything that a login passes through, and what is needed to look at it from all sides."""

    def __init__(self, gatepass: GatepassInstall, openclaw: OpenClawInstall) -> None:
        root = os.geteuid() == 0
        self.gatepass = gatepass
        self.owner = Account.unprivileged()
        """Runs OpenClaw and its CLI."""
        self.stranger = Account.named("www-data") if root else self.owner
        """Has a rule and an identity of its own."""
        self.nobody = Account.named("news") if root else self.owner
        """Has no rule."""
        self.directory = Path(tempfile.mkdtemp(prefix="gatepass-"))
        self.directory.chmod(0o755)
        self.port, self.upstream_port = free_port(), free_port()
        self.user_header = f"x-user-{secrets.token_hex(16)}"
        broker_account = Account.named("daemon") if root else self.owner
        proxy_account = Account.named("proxy") if root else self.owner
        self.socket = self._make_directory("run", broker_account) / "broker.sock"
        self.jwks = self.socket.with_name("jwks.json")
        self._make_directory("state", broker_account)
        self.broker = self._daemon("gatepass-broker", broker_account, self._broker_toml())
        self.proxy = self._daemon("gatepass-gateway", proxy_account, self._proxy_toml())
        self.model = ModelServer(Say(("one ", "two ", "three"), pause=0.5))
        self.openclaw = OpenClawInstance(openclaw, port=self.upstream_port, account=self.owner)
        self.answers = self.openclaw.home / "answers.log"
        """What the launcher answered to OpenClaw, one line each: for looking at what the gateway itself was given."""

    def __enter__(self) -> Stack:
        """Start everything. If one part does not start, or somebody is impatient, the others end again."""
        with ExitStack() as parts:
            parts.callback(shutil.rmtree, self.directory, ignore_errors=True)
            parts.enter_context(self.model)
            parts.callback(self.broker.stop)
            self.broker.start()
            parts.callback(self.proxy.stop)
            self.proxy.start()
            parts.callback(self.openclaw.close)
            self.openclaw.write_config(self.openclaw_config())
            self.openclaw.start()
            self._parts = parts.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._parts.close()

    def environment(self) -> dict[str, str]:
        """Return the environment of gatepass commands."""
        return {"PATH": "/usr/bin:/bin", "GATEPASS_SOCKET": str(self.socket), "LANG": "C.UTF-8"}

    def token(self, account: Account | None = None, *options: str) -> str:
        """Return a fresh token for `account`, as `gatepass token` prints it."""
        done = self.gatepass.run(account or self.owner, "gatepass", "token", *options, env=self.environment())
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def launcher(self, instance: OpenClawInstance, *options: str) -> Path:
        """Write the launcher that OpenClaw demands: a regular file of its user. It also notes each answer."""
        return instance.write_file(
            "gatepass-secret",
            "#!/bin/sh\n"
            f"GATEPASS_SOCKET={self.socket} {self.gatepass.bin}/gatepass openclaw secret {' '.join(options)}"
            f" >{instance.home}/answer.$$\n"
            f"cat {instance.home}/answer.$$ | tee -a {instance.home}/answers.log\n"
            f"echo >>{instance.home}/answers.log; rm {instance.home}/answer.$$\n",
            mode=0o700,
        )

    def openclaw_config(self, instance: OpenClawInstance | None = None, *options: str) -> Config:
        """Return the configuration of an OpenClaw of this stack; `options` go to `gatepass openclaw secret`."""
        launcher = self.launcher(instance or self.openclaw, *options)
        config = trusted_proxy_config(
            port=self.port,
            secret_command=launcher,
            user_header=self.user_header,
            secret_env=("OPENCLAW_GATEWAY_PORT",),
        )
        config["gateway"]["http"] = {"endpoints": {"chatCompletions": {"enabled": True}}}
        return {**config, **self.model.openclaw_config()}

    def another_cli(self, account: Account | None = None, *options: str) -> OpenClawInstance:
        """Return an OpenClaw that is only a CLI, of `account`, whose secrets are asked for with `options`."""
        instance = OpenClawInstance(self.openclaw.install, port=free_port(), account=account or self.owner)
        instance.write_config(self.openclaw_config(instance, *options))
        return instance

    def _make_directory(self, name: str, account: Account) -> Path:
        path = self.directory / name
        path.mkdir(mode=0o755)
        os.chown(path, account.uid, account.gid)
        return path

    def _daemon(self, command: str, account: Account, config: str) -> Daemon:
        path = self.directory / f"{command}.toml"
        path.write_text(config)
        path.chmod(0o644)
        return Daemon([self.gatepass.bin / command, "--config", path], account, self.directory / f"{command}.log")

    def _broker_toml(self) -> str:
        scopes = ", ".join(f'"{scope}"' for scope in OPERATOR_SCOPES)
        rules = [(self.owner, "owner", USER), (self.stranger, "stranger", OTHER_USER)]
        return f"""
[broker]
id = "e2e"
loopback_user = "{USER}"
state_dir = "{self.directory}/state"
jwks_file = "{self.jwks}"

[[socket]]
path = "{self.socket}"
mode = "0666"
allow = ["request", "follow"]
""" + "".join(
            f"""
[[rule]]
name = "{name}"
uid = {account.uid}
identity = "{identity}"
audiences = ["openclaw", "elsewhere"]
scopes = [{scopes}]
"""
            for account, name, identity in rules
        )

    def _proxy_toml(self) -> str:
        scopes = ", ".join(f'"{scope}"' for scope in OPERATOR_SCOPES)
        return f"""
[listen]
port = {self.port}
[upstream]
port = {self.upstream_port}
user = {self.owner.uid}
identity_source = "{IDENTITY_SOURCE}"
[identity]
user_header = "{self.user_header}"
[identity.users]
"{USER}" = [{scopes}]
[keys]
broker_socket = "{self.socket}"
"""


def _uv(*arguments: str) -> None:
    """Run uv in the checkout, quietly unless it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "uv", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
