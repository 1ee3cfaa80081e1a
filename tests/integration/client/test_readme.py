"""The README's example in Python does what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.broker import BrokerProcess

README = Path(__file__).resolve().parents[3] / "README.md"


def test_the_python_example_gets_a_token(tmp_path: Path) -> None:
    example = README.read_text().split("```python\n")[1].split("```")[0]
    with BrokerProcess(tmp_path) as broker:
        done = subprocess.run(
            [sys.executable, "-c", f"{example}\nassert headers['Authorization'].startswith('Bearer eyJ')"],
            env={**os.environ, "GATEPASS_SOCKET": str(broker.socket)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
