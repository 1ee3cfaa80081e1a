"""What the service manager is told of a redirect that cannot start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from gatepass.daemon.addresses import REDIRECTED_TO

WITHOUT_NFTABLES = """
import sys
from gatepass_gateway.redirect import cli, nft
nft._LIBRARY = "libnone.so.1"
sys.exit(cli.main(sys.argv[1:]))
"""
CONFIG = f"""
[listen]
port = 789
addresses = {list(REDIRECTED_TO)}
[upstream]
port = 18789
user = 1000
[identity]
user_header = "x-user"
users = {{}}
[redirect]
proxy_user = 997
"""


def test_a_wrong_configuration_shows_in_the_status_of_the_service(tmp_path: Path) -> None:
    """As that of broker and proxy: `systemctl status` has no other line that says what is wrong."""
    config = tmp_path / "gateway.toml"
    config.write_text("[redirekt]\n")
    assert status_of_failed(config, "-m", "gatepass_gateway.redirect").startswith(f"STATUS=misconfigured: {config}: ")


def test_so_does_a_part_of_the_machine_that_is_missing(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(CONFIG)
    assert "libnone.so.1 is missing; on Debian: apt-get install" in status_of_failed(config, "-c", WITHOUT_NFTABLES)


def status_of_failed(config: Path, *python: str) -> str:
    """Start the redirect, which must find itself misconfigured, and return what it told the service manager."""
    address = config.with_name("notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(5)
        command = [sys.executable, *python, "--config", str(config)]
        environment = {**os.environ, "NOTIFY_SOCKET": str(address)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 6, done.stderr
        return manager.recv(4096).decode()
