"""The whole chain on one machine: broker, proxy and an unmodified OpenClaw, each as a user of its own (root only)."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from e2e.accounts import as_account
from e2e.later_time import LaterTime
from e2e.model_server import ModelServer, Say
from e2e.openclaw_config import OPERATOR_SCOPES, USER, Config, trusted_proxy_config
from e2e.openclaw_install import OpenClawInstall
from e2e.openclaw_instance import Account, OpenClawInstance

CHECKOUT = Path(__file__).resolve().parents[2]
OTHER_USER = "mallory@example.com"
READY_SECONDS = 20.0
RECONNECT_SECONDS = 3 * 3600
"""For how long the rules let a client log in again with a token that it has logged in with."""


def free_port() -> int:
    """Return a port that nothing listens on, nor will as the end of a connection: none that the kernel gives out."""
    while True:
        port = random.randrange(15_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
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

    def start(self, at: LaterTime | None = None) -> None:
        """Start it and wait until it is ready; `at` a later time of the boot clock, if one is given (root only)."""
        offset = len(self.log.read_text()) if self.log.exists() else 0
        as_user = as_account(self.account) if at is None else {}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command if at is None else at.command(self._command, self.account),
                cwd="/",
                env={"PATH": "/usr/bin:/bin"},
                stderr=log,
                stdin=subprocess.DEVNULL,
                **as_user,
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

    setup_options: tuple[str, ...] = ()
    """More options for `gatepass openclaw setup`."""

    def __init__(self, gatepass: GatepassInstall, openclaw: OpenClawInstall) -> None:
        root = os.geteuid() == 0
        self.gatepass = gatepass
        self.owner = Account.unprivileged()
        """Runs OpenClaw and its CLI."""
        self.stranger = Account.named("www-data") if root else self.owner
        """Has a rule and an identity of its own."""
        self.nobody = Account.named("news") if root else self.owner
        """Has no rule."""
        self.colleague = Account.named("man") if root else self.owner
        """Has a rule with the owner's identity, and may log in as a device."""
        self.reverse_proxy = Account.named("backup") if root else None
        """What runs as this account is the reverse proxy, and brings identities."""
        self.directory = Path(tempfile.mkdtemp(prefix="gatepass-"))
        self.directory.chmod(0o755)
        self.port, self.upstream_port = free_port(), free_port()
        self.user_header = ""
        """The unguessable name that setup made."""
        broker_account = Account.named("daemon") if root else self.owner
        proxy_account = Account.named("proxy") if root else self.owner
        self.socket = self._make_directory("run", broker_account) / "broker.sock"
        self.admin_socket = self.socket.with_name("admin.sock")
        self.jwks = self.socket.with_name("jwks.json")
        self._make_directory("state", broker_account)
        self._make_directory("logins", proxy_account)
        self.broker = self._daemon("gatepass-broker", broker_account)
        self.proxy = self._daemon("gatepass-gateway", proxy_account)
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
            self._write("gatepass-broker", self._broker_toml())
            self.broker.start()
            parts.callback(self.openclaw.close)
            self._write("gatepass-gateway", self._set_up() + self._more_proxy_toml())
            parts.callback(self.proxy.stop)
            self.proxy.start()
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

    def administer(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run `gatepass COMMAND` on the broker's socket for administrators, as the user who runs the tests."""
        return self.gatepass.run(
            Account(os.geteuid(), os.getegid()),
            *("gatepass", *command, "--socket", str(self.admin_socket)),
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        )

    def openclaw_config(self) -> Config:
        """Return the configuration that OpenClaw runs with: the one that setup made."""
        config: Config = json.loads(self._made)
        return config

    def another_cli(self, account: Account | None = None, *options: str) -> OpenClawInstance:
        """Return an OpenClaw that is only a CLI, of `account`, whose secrets are asked for with `options`."""
        instance = OpenClawInstance(self.openclaw.install, port=free_port(), account=account or self.owner)
        launcher = instance.write_file("gatepass-secret", self._noting_launcher(instance, *options), mode=0o700)
        config = trusted_proxy_config(
            port=self.port,
            secret_command=launcher,
            user_header=self.user_header,
            secret_env=("OPENCLAW_GATEWAY_PORT",),
        )
        instance.write_config({**config, **self.model.openclaw_config()})
        return instance

    def client_only(self, account: Account | None = None, *options: str) -> OpenClawInstance:
        """Return an OpenClaw that is only a client, as on another machine: `openclaw tui` takes its secret from there.

        In a local configuration with `trusted-proxy` that command takes none that is configured (2026.9.6).
        """
        instance = OpenClawInstance(self.openclaw.install, port=free_port(), account=account or self.owner)
        launcher = instance.write_file("gatepass-secret", self._noting_launcher(instance, *options), mode=0o700)
        config = trusted_proxy_config(port=self.port, secret_command=launcher)
        secret = config["gateway"]["auth"]["password"]
        remote = {"url": f"ws://127.0.0.1:{self.port}", "token": secret}
        instance.write_config({"gateway": {"mode": "remote", "remote": remote}, "secrets": config["secrets"]})
        return instance

    def _set_up(self) -> str:
        """Let `gatepass openclaw setup` change OpenClaw's configuration, and return the one that it made for the proxy.

        Two things differ from a person's own machine: the proxy runs as another user, so its file goes to where that
        user can read it; and the launcher is replaced, in its place, by one that also notes its answers.
        """
        self.openclaw.write_config(self._before_setup())
        home, install = self.openclaw.home, self.openclaw.install
        command = self.openclaw.write_file("openclaw", f'#!/bin/sh\nexec {install.entry} "$@"\n', mode=0o755)
        made = home / "gatepass" / "gateway.toml"
        done = self.gatepass.run(
            self.owner,
            *("gatepass", "openclaw", "setup", "--write", "--loopback-user", USER, "--socket", str(self.socket)),
            *("--second-port", str(self.upstream_port), "--openclaw", str(command), "--gateway-config", str(made)),
            *self.setup_options,
            env=self.openclaw.environment(),
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        self._made = self.openclaw.config_path.read_text()
        self.openclaw.write_file("state/gatepass-secret", self._noting_launcher(self.openclaw), mode=0o700)
        proxy_toml = made.read_text()
        self.user_header = tomllib.loads(proxy_toml)["identity"]["user_header"]
        return proxy_toml

    def _before_setup(self) -> Config:
        """Return what somebody has who has not heard of gatepass."""
        return {
            "gateway": {
                "mode": "local",
                "bind": "loopback",
                "port": self.port,
                "auth": {"mode": "token", "token": "a-shared-secret"},
                "controlUi": {"enabled": False},
                "http": {"endpoints": {"chatCompletions": {"enabled": True}}},
            },
            "discovery": {"mdns": {"mode": "off"}},
            **self.model.openclaw_config(),
        }

    def _noting_launcher(self, instance: OpenClawInstance, *options: str) -> str:
        """Return a launcher that also notes each answer; `options` go to `gatepass openclaw secret`."""
        return (
            "#!/bin/sh\n"
            f"GATEPASS_SOCKET={self.socket} {self.gatepass.bin}/gatepass openclaw secret {shlex.join(options)}"
            f" >{instance.home}/answer.$$\n"
            f"cat {instance.home}/answer.$$ | tee -a {instance.home}/answers.log\n"
            f"echo >>{instance.home}/answers.log; rm {instance.home}/answer.$$\n"
        )

    def _make_directory(self, name: str, account: Account) -> Path:
        path = self.directory / name
        path.mkdir(mode=0o755)
        os.chown(path, account.uid, account.gid)
        return path

    def _daemon(self, command: str, account: Account) -> Daemon:
        path = self.directory / f"{command}.toml"
        return Daemon([self.gatepass.bin / command, "--config", path], account, self.directory / f"{command}.log")

    def _more_proxy_toml(self) -> str:
        """Return what setup leaves to the operator."""
        sessions = f'[sessions]\nstate_dir = "{self.directory}/logins"\n'
        if self.reverse_proxy is None:
            return sessions
        return f"""
{sessions}
[device_logins]
users = [{self.colleague.uid}]

[[reverse_proxy]]
user = {self.reverse_proxy.uid}
"""

    def _write(self, command: str, config: str) -> None:
        path = self.directory / f"{command}.toml"
        path.write_text(config)
        path.chmod(0o644)

    def _broker_toml(self) -> str:
        scopes = ", ".join(f'"{scope}"' for scope in OPERATOR_SCOPES)
        rules = [
            (self.owner, "owner", USER),
            (self.stranger, "stranger", OTHER_USER),
            (self.colleague, "colleague", USER),
        ]
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

[[socket]]
path = "{self.admin_socket}"
mode = "0600"
allow = ["request", "admin"]
""" + "".join(
            f"""
[[rule]]
name = "{name}"
uid = {account.uid}
identity = "{identity}"
audiences = ["openclaw", "elsewhere"]
scopes = [{scopes}]
reconnect = {RECONNECT_SECONDS}
"""
            for account, name, identity in rules
        )


def _uv(*arguments: str) -> None:
    """Run uv in the checkout, quietly unless it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "uv", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
