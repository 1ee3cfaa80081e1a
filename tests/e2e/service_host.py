"""A booted machine with gatepass installed as its own command installs it, and with OpenClaw as a service."""

from __future__ import annotations

import json
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from e2e.machine import Machine
from e2e.machine_tree import own_wheel
from e2e.model_server import ModelServer
from e2e.openclaw_config import USER
from e2e.openclaw_install import OpenClawInstall

INSTALLER = "/srv/installer"
"""The venv from which an administrator runs `gatepass-broker install`; only needed for that."""

HANGING = Path(__file__).with_name("in_machine") / "hanging.py"

PYTHON = "/opt/gatepass/current/bin/python"
OPENCLAW_HOME = "/var/lib/openclaw"
OPENCLAW_UNIT = "openclaw-gateway.service"
PORT = 18789
PROXY_PORT = 789
OWN_ADDRESSES = ("127.0.0.1", "127.0.0.2", "192.0.2.10", "::1", "2001:db8::10")
"""At which OpenClaw's port can be dialled on the machine itself."""


def prepare_installer(machine: Machine) -> None:
    """Make the venv with gatepass in it from wheels, as a person does from the index."""
    machine.run("python3", "-m", "venv", INSTALLER, timeout=60)
    pip = (f"{INSTALLER}/bin/pip", "install", "--quiet", "--no-index", "--find-links", machine.wheels)
    machine.run(*pip, "gatepass[all]", timeout=120)


def install(machine: Machine, *options: str, check: bool = True) -> Any:
    """Run `gatepass-broker install OPTIONS` as root."""
    return machine.run(f"{INSTALLER}/bin/gatepass-broker", "install", *options, timeout=120, check=check)


class OpenClawService:
    """OpenClaw as a system unit of the account `openclaw`, and its CLI."""

    user = "openclaw"
    unit = OPENCLAW_UNIT

    def __init__(self, machine: Machine, openclaw: OpenClawInstall) -> None:
        self.machine = machine
        self.openclaw = openclaw
        self.environment = {
            "HOME": OPENCLAW_HOME,
            "OPENCLAW_STATE_DIR": f"{OPENCLAW_HOME}/state",
            "OPENCLAW_CONFIG_PATH": f"{OPENCLAW_HOME}/openclaw.json",
            "PATH": f"{openclaw.node.parent}:/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
        }

    def create(self, config: dict[str, Any]) -> None:
        """Make the account, its files and the unit; start nothing."""
        machine = self.machine
        machine.add_user("openclaw", system=True, home=OPENCLAW_HOME)
        machine.write(f"{OPENCLAW_HOME}/openclaw.json", json.dumps(config), mode=0o600, owner="openclaw")
        self.create_command()
        environment = "\n".join(f"Environment={key}={value}" for key, value in self.environment.items())
        machine.write(
            f"/etc/systemd/system/{OPENCLAW_UNIT}",
            f"""[Unit]
Description=OpenClaw
After=network.target

[Service]
User=openclaw
{environment}
ExecStart=/usr/local/bin/openclaw gateway run
Restart=always
RestartSec=1s
TimeoutStopSec=15s

[Install]
WantedBy=multi-user.target
""",
        )

    def create_command(self) -> None:
        """Put `openclaw` into everybody's $PATH."""
        command = f'#!/bin/sh\nexec {self.openclaw.node} {self.openclaw.entry} "$@"\n'
        self.machine.write("/usr/local/bin/openclaw", command, mode=0o755)

    def cli(self, *arguments: str, check: bool = False, **variables: str) -> Any:
        """Run `openclaw ARGUMENTS` as the account that runs OpenClaw."""
        return self.machine.run(
            "/usr/local/bin/openclaw",
            *arguments,
            user=self.user,
            env={**self.environment, **variables},
            timeout=90,
            check=check,
        )

    def wait_until_ready(self, since: int = 0) -> None:
        """Wait until it has said that it is ready, more often than `since` times."""
        self.machine.wait_until(lambda: self.times_ready() > since, timeout=90)

    def times_ready(self) -> int:
        """How often it has got ready so far."""
        manager = None if self.user == "openclaw" else self.user
        return self.machine.journal(self.unit, user=manager).count("[gateway] ready")


def before_setup(model: ModelServer | None = None) -> dict[str, Any]:
    """The configuration of somebody who has not heard of gatepass."""
    return {
        "gateway": {
            "mode": "local",
            "bind": "loopback",
            "port": PORT,
            "auth": {"mode": "token", "token": "a-shared-secret"},
            "controlUi": {"enabled": False},
            "http": {"endpoints": {"chatCompletions": {"enabled": True}}},
        },
        "discovery": {"mdns": {"mode": "off"}},
        **(model.openclaw_config() if model else {}),
    }


@contextmanager
def broker_host(release: str) -> Iterator[Machine]:
    """A machine on which `derek` may have tokens from a broker; there is no OpenClaw."""
    with Machine(release) as machine:
        machine.boot()
        for name in ("derek", "mallory"):
            machine.add_user(name)
        prepare_installer(machine)
        install(machine, "--loopback-user", USER, "--user", "derek")
        yield machine


def can_hang(machine: Machine, unit: str, module: str, *arguments: str, watchdog_seconds: int) -> None:
    """From its next start on, have the service of the daemon `module` hang when it gets SIGUSR1."""
    program = "/srv/hanging.py"
    machine.write(program, HANGING.read_text())
    command = " ".join((PYTHON, program, module, *arguments))
    settings = f"[Service]\nWatchdogSec={watchdog_seconds}s\nExecStart=\nExecStart={command}\n"
    machine.write(f"/run/systemd/system/{unit}.d/hanging.conf", settings)
    machine.systemctl("daemon-reload")


def cannot_hang(machine: Machine, unit: str) -> None:
    """Take that back, for the next start."""
    machine.run("rm", "-f", f"/run/systemd/system/{unit}.d/hanging.conf")
    machine.systemctl("daemon-reload")


def hang(machine: Machine, unit: str) -> None:
    """Make it hang, and return when it does. The process goes on."""
    before = machine.journal(unit).count("hanging")
    machine.systemctl("kill", "--kill-whom=main", "--signal=SIGUSR1", unit)
    machine.wait_until(lambda: machine.journal(unit).count("hanging") > before)


def in_python(machine: Machine, source: str, user: str | None = None, check: bool = True, timeout: float = 30) -> Any:
    """Run Python code inside, with gatepass importable."""
    return machine.run(PYTHON, "-c", source, user=user, check=check, timeout=timeout)


def bring_newer_gatepass(machine: Machine) -> None:
    """Install into the installer's environment a wheel that differs from the one that is there."""
    name, content = own_wheel()
    wheel = f"/srv/newer/{name}"
    machine.write(f"{wheel}.base64", b64encode(_changed(content)).decode())
    machine.shell(f"base64 -d {wheel}.base64 >{wheel}")
    machine.run(f"{INSTALLER}/bin/pip", "install", "--quiet", "--force-reinstall", "--no-deps", wheel, timeout=60)


def _changed(wheel: bytes) -> bytes:
    """Return the wheel with a comment at the end of a module, and with the record of its files made to agree."""
    module, made = "gatepass/__init__.py", BytesIO()
    with ZipFile(BytesIO(wheel)) as old, ZipFile(made, "w") as new:
        newer = old.read(module) + b"# newer\n"
        digest = urlsafe_b64encode(sha256(newer).digest()).rstrip(b"=").decode()
        for entry in old.namelist():
            content = newer if entry == module else old.read(entry)
            if entry.endswith("/RECORD"):
                line = f"{module},sha256={digest},{len(newer)}"
                content = re.sub(f"^{module},.*$", line, content.decode(), flags=re.MULTILINE).encode()
            new.writestr(entry, content)
    return made.getvalue()


def current_release(machine: Machine) -> str:
    """The release that runs."""
    return machine.run("readlink", "/opt/gatepass/current").stdout
