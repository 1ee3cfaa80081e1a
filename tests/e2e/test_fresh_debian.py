"""What README.md promises somebody on a fresh machine: clone, `make demo`, `make test`, and no other step.

It is the last commit that is cloned, as a newcomer would get it: what is not committed is not tried.
"""

from __future__ import annotations

import os
import shutil

import pytest

from e2e.debian_tree import ORIGIN, fresh_debian
from e2e.stack import CHECKOUT

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(900, method="signal"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a Debian tree with mounts of its own"),
    pytest.mark.skipif(
        not shutil.which("mmdebstrap"), reason="needs mmdebstrap: on Debian, apt-get install mmdebstrap"
    ),
]


def test_clone_demo_and_test_succeed_in_an_empty_debian_with_no_other_step() -> None:
    with fresh_debian(CHECKOUT) as debian:
        debian.run(f"git clone --quiet {ORIGIN} gatepass")
        assert "make demo" in debian.run("make", directory="gatepass")
        shown = debian.run("make demo", directory="gatepass", timeout=180)
        table = (CHECKOUT / "README.md").read_text().partition("<!-- make demo -->")[2].split("```")[1]
        assert table.strip() in shown
        assert " passed" in debian.run("make test", directory="gatepass", timeout=300)
