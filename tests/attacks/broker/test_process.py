"""Attack 50 (docs/threat-model.md): what the process keeps of its memory from others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.broker import BrokerProcess

PR_GET_DUMPABLE = 3


def test_50_no_core_dump_is_written(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path) as broker:
        limits = Path(f"/proc/{broker.pid}/limits").read_text()
        core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))

        assert core.split()[4:6] == ["0", "0"]


def test_50_no_program_of_the_same_user_can_attach() -> None:
    script = f"""
import ctypes, os
from gatepass.daemon.process import harden
harden()
print(ctypes.CDLL(None).prctl({PR_GET_DUMPABLE}, 0, 0, 0, 0), oct(os.umask(0)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["0", "0o77"]


def test_50_the_command_hardens_itself_before_it_makes_a_key() -> None:
    """In `cli._command`, before anything that could hold a secret is even imported."""
    script = """
import sys
import gatepass.daemon.process
gatepass.daemon.process.harden = lambda: print("hardened", "gatepass_broker.keys" in sys.modules)
from gatepass_broker.cli import main
main(["--config", "/nonexistent/x.toml"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["hardened", "False"]
