"""What the service manager is told of a redirect that cannot start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def test_a_wrong_configuration_shows_in_the_status_of_the_service(tmp_path: Path) -> None:
    """As that of broker and proxy: `systemctl status` has no other line that says what is wrong."""
    config, address = tmp_path / "gateway.toml", tmp_path / "notify"
    config.write_text("[redirekt]\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(5)
        command = [sys.executable, "-m", "gatepass_gateway.redirect", "--config", str(config)]
        environment = {**os.environ, "NOTIFY_SOCKET": str(address)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 6, done.stderr
        assert manager.recv(4096).decode().startswith(f"STATUS=misconfigured: {config}: ")
