"""The chain is started once for all end-to-end tests: OpenClaw alone takes ten seconds to start."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.openclaw_install import OpenClawInstall, ensure_openclaw
from e2e.stack import GatepassInstall, Stack


@pytest.fixture(scope="session")
def openclaw_install() -> OpenClawInstall:
    """The unmodified OpenClaw, from a cache outside the checkout."""
    return ensure_openclaw()


@pytest.fixture(scope="session")
def gatepass_install() -> Iterator[GatepassInstall]:
    """This checkout as a wheel, installed where every user can run it."""
    with tempfile.TemporaryDirectory(prefix="gatepass-install-") as directory:
        Path(directory).chmod(0o755)
        yield GatepassInstall(Path(directory))


@pytest.fixture(scope="session")
def stack(gatepass_install: GatepassInstall, openclaw_install: OpenClawInstall) -> Iterator[Stack]:
    """Broker, proxy and OpenClaw, running."""
    with Stack(gatepass_install, openclaw_install) as running:
        yield running
