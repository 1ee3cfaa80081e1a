"""Attacks 13 and 14 (docs/threat-model.md): a caller's pid becomes another process's while the broker looks.

On kernels that tell less, too: real seccomp filters refuse what they do not have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.cgroups import Slice, test_slice
from support.seccomp import OLD_KERNELS, can_refuse

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to choose pids and make cgroups"),
    pytest.mark.skipif(not can_refuse(), reason="needs a machine whose system call numbers the test knows"),
]

SCRIPT = Path(__file__).with_name("pid_reuse.py")
TESTS = Path(__file__).parents[2]
WITH_PIDFD = {"before", "holding", "id", "namespaces", "path", "inode"}
STEPS = {"6.13": WITH_PIDFD, "6.5": WITH_PIDFD, "6.1": WITH_PIDFD | {"opened"}, "5.2": {"before", "holding"}}
"""What there is to attack on each kernel."""


@pytest.fixture(scope="module")
def units() -> Iterator[Slice]:
    made = test_slice()
    for unit in ("attacker.service", "openclaw.service"):
        made.make(unit)
    yield made
    made.remove()


@pytest.fixture(scope="module", params=OLD_KERNELS)
def seen(request: pytest.FixtureRequest, units: Slice) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the kernel, and what was seen by the moment at which the pid changed hands."""
    namespace = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no pid namespaces can be made here")
    command = [*namespace, sys.executable, str(SCRIPT), request.param, str(units.top)]
    run = subprocess.run(command, capture_output=True, check=False, env=os.environ | {"PYTHONPATH": str(TESTS)})
    assert run.returncode == 0, run.stderr.decode()
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    return request.param, {line["moment"]: line for line in lines}


def test_a_caller_that_keeps_its_pid_is_known(seen: tuple[str, dict[str, dict[str, Any]]]) -> None:
    """What the attacks are compared with: the same connection is attested where nothing is done to its pid."""
    kernel, moments = seen
    calm = moments["never"]
    known = kernel != "5.2"
    assert (calm["taken"], calm["pid"], calm["now_in"]) == (False, True, "attacker.service")
    assert calm["unit"] == ("attacker.service" if known else None)
    assert calm["nested"] is (False if known else None)
    assert (calm["process"] is not None, calm["held"]) == (known, known)
    assert (calm["unsettled"], calm["exited"]) == (False, False)


def test_13_the_new_owner_of_the_pid_is_never_taken_for_the_caller(
    seen: tuple[str, dict[str, dict[str, Any]]],
) -> None:
    kernel, moments = seen
    attacked = [line for line in moments.values() if line["taken"]]
    assert {line["moment"] for line in attacked} == STEPS[kernel]
    for line in attacked:
        assert (line["pid"], line["now_in"]) == (True, "openclaw.service"), line  # whoever goes by the pid falls for it
        assert line["unit"] in (None, "attacker.service"), line
        assert line["process"] is None or line["process"] != line["now_process"], line
        assert line["exited"] or not line["held"], line


def test_14_a_caller_that_has_exited_by_the_time_it_is_looked_at_is_nobody(
    seen: tuple[str, dict[str, dict[str, Any]]],
) -> None:
    """Where the kernel cannot tell its process from the new one, it is told to come again: nobody will."""
    kernel, moments = seen
    line = moments["before"]
    assert (line["unit"], line["nested"]) == (None, None)
    assert line["exited"] is (kernel in ("6.13", "6.5"))
    assert line["unsettled"] is (kernel == "6.1")
