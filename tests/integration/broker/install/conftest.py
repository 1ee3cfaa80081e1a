"""gatepass as people install it: a wheel of this checkout, in a virtual environment of the system's Python."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from gatepass_broker.install.layout import Layout

CHECKOUT = Path(__file__).parents[4]
MAKE = """
import sys
from pathlib import Path
from gatepass_broker.install import release
from gatepass_broker.install.layout import Layout
from gatepass_broker.install.requirements import installed_distributions

layout = Layout(Path(sys.argv[1]))
release.make_places(layout)
plan = release.blueprint(installed_distributions(("broker", "gateway")))
if not release.is_complete(layout, plan.name):
    release.make(layout, plan)
release.switch(layout, plan.name)
print(plan.name)
"""


class Installer(NamedTuple):
    """The environment from which an administrator runs `gatepass-broker install`."""

    directory: Path

    @property
    def packages(self) -> Path:
        """Its site-packages."""
        (found,) = self.directory.glob("lib/python3*/site-packages")
        return found

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `gatepass-broker ARGUMENTS`."""
        return execute(str(self.directory / "bin" / "gatepass-broker"), *arguments)

    def make(self, root: Path) -> subprocess.CompletedProcess[str]:
        """Make a release of it below `root`, and let it be the one in use."""
        return execute(str(self.directory / "bin" / "python"), "-I", "-c", MAKE, str(root))


class Machine(NamedTuple):
    """A file system with a release on it, which every user can reach."""

    layout: Layout
    release: Path


def execute(*command: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command, as the user with that uid."""
    return subprocess.run(
        command,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", str(directory)]
    subprocess.run(command, cwd=CHECKOUT, check=True, timeout=100)
    (found,) = directory.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def fresh(wheel: Path) -> Iterator[Installer]:
    with public_directory() as directory:
        yield install_wheel(wheel, directory / "venv")


@pytest.fixture(scope="session")
def machine(fresh: Installer) -> Iterator[Machine]:
    with public_directory() as root:
        (root / "opt").mkdir()
        made = fresh.make(root)
        assert made.returncode == 0, made.stderr
        layout = Layout(root)
        yield Machine(layout, layout.releases / made.stdout.strip())


@contextmanager
def public_directory() -> Iterator[Path]:
    """Make a directory that other users can enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="gatepass-install-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


def install_wheel(wheel: Path, directory: Path) -> Installer:
    uv = (sys.executable, "-m", "uv")  # copies: its cache would be changed along with what a test changes
    subprocess.run([_system_python(), "-m", "venv", "--without-pip", str(directory)], check=True, timeout=60)
    command = [*uv, "pip", "install", "--quiet", "--link-mode=copy", "--python", str(directory / "bin" / "python")]
    subprocess.run([*command, f"gatepass[all] @ file://{wheel}"], check=True, timeout=100)
    return Installer(directory)


def _system_python() -> str:
    """A Python that services can run, where the machine has one that is new enough; else the one of the tests."""
    python = "/usr/bin/python3"
    if Path(python).exists():
        new_enough = "import sys, venv; sys.exit(sys.version_info < (3, 11))"
        if subprocess.run([python, "-c", new_enough], check=False, stderr=subprocess.DEVNULL).returncode == 0:
            return python
    return sys.executable


@pytest.fixture
def nobody(machine: Machine) -> int:
    """A uid that can reach the release, and nothing else in particular."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to run commands as another user")
    base = (machine.release / "bin" / "python").resolve()
    if any(not entry.stat().st_mode & 0o001 for entry in (base, *base.parents)):
        pytest.skip(f"{base} can only be run by its owner; needs a Python of the system, 3.11 or later")
    return 4_242
