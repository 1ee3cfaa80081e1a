"""`gatepass-redirect` as a process on a `Machine`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from attacks.redirect.machine import GATEWAY_PORT, PROXY, PROXY_PORT, SECONDS, Machine, eventually
from gatepass.daemon.addresses import REDIRECTED_TO
from support.gateway import gateway_tables, to_toml

COMMAND = (sys.executable, "-m", "gatepass_gateway.redirect")


def write_configuration(directory: Path, **redirect: Any) -> Path:
    """Write the proxy's configuration, with `[redirect]`."""
    directory.chmod(0o755)
    path = directory / "gateway.toml"
    tables = gateway_tables(
        GATEWAY_PORT,
        port=PROXY_PORT,
        listen={"addresses": REDIRECTED_TO},
        redirect={"proxy_user": PROXY, **redirect},
    )
    path.write_text(to_toml(tables))
    path.chmod(0o600)
    return path


def run_command(machine: Machine, *arguments: str | Path, before: Sequence[str] = ()) -> tuple[int, str]:
    """Run the command to its end; return its status and what it has said."""
    with machine.host.entered():
        done = subprocess.run(
            [*before, *COMMAND, *map(str, arguments)],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
    return done.returncode, done.stdout


class HolderProcess:
    """A holder, ready. A context manager: it is killed at the end."""

    def __init__(
        self,
        machine: Machine,
        directory: Path,
        *,
        before: Sequence[str] = (),
        watchdog_seconds: float = 0,
        **redirect: Any,
    ) -> None:
        config = write_configuration(directory, **redirect)
        self._log = directory / "redirect.log"
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.settimeout(SECONDS)
        address = directory / "notify"
        address.unlink(missing_ok=True)
        self._manager.bind(str(address))
        environment = {**os.environ, "NOTIFY_SOCKET": str(address)}
        if watchdog_seconds:
            environment["WATCHDOG_USEC"] = str(int(watchdog_seconds * 1e6))
        with machine.host.entered(), self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*before, *COMMAND, "--config", str(config)], stdout=log, stderr=log, env=environment
            )
        eventually(lambda: "ready" in self.log or self.process.poll() is not None)
        assert self.process.poll() is None, self.log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def told(self) -> str:
        """Return the next message to the service manager."""
        return self._manager.recv(4096).decode()

    def end(self, number: signal.Signals) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(SECONDS)
        self._manager.close()
