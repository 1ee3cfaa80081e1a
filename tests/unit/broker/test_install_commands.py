"""The machine's own commands: none outlives a run that was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BEGIN = """
import sys
from gatepass_broker.install.commands import Identity, complete
uid = int(sys.argv[1])
identity = Identity(uid, uid, ()) if uid else None
line = 'echo > "$1/begun"; sleep 1; echo > "$1/done"'
complete(("sh", "-c", line, "sh", sys.argv[2]), environment={"PATH": "/usr/bin:/bin"}, identity=identity)
"""


@pytest.fixture
def everybodys() -> Iterator[Path]:
    """A directory that every user can write to, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.mark.parametrize(
    "uid",
    [0, pytest.param(33, marks=[pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="runs as another")])],
)
def test_a_command_ends_with_who_runs_it_and_does_nothing_behind_the_back_of_the_next_run(
    everybodys: Path, uid: int
) -> None:
    with subprocess.Popen([sys.executable, "-c", BEGIN, str(uid), str(everybodys)]) as run:
        try:
            limit = time.monotonic() + 10
            while not (everybodys / "begun").exists():
                assert time.monotonic() < limit
                time.sleep(0.01)
        finally:
            run.kill()
    time.sleep(1.5)
    assert not (everybodys / "done").exists()
