"""An empty Debian 12, to do in it what a newcomer does on a fresh machine (root only).

Debian's packages are fetched once per machine, into an archive in the cache of the end-to-end tests. Each use unpacks
it into memory, in mount and pid namespaces of its own, which a process holds that ends when its stdin does: however
the test ends, by SIGKILL even, the kernel takes the processes, the mounts and the files away.
"""

from __future__ import annotations

import configparser
import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from e2e.openclaw_install import cache_dir

RELEASE = "bookworm"
PACKAGES = ("python3", "python3-venv", "make", "git", "ca-certificates")
"""What is there beside the packages that no Debian can do without; git brings ca-certificates as a recommendation."""

MIRROR = "http://deb.debian.org/debian"
MAKE_TIMEOUT = 300.0

HOME = "/root"
ORIGIN = "/srv/gatepass.git"
"""Where the tree finds the repository to clone."""

CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
NETWORK_VARIABLES = ("PIP_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_PROXY", "PIP_DEFAULT_TIMEOUT", "UV_HTTP_TIMEOUT")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
PIP_FILES = ("/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")
PIP_OPTIONS = ("index-url", "trusted-host", "proxy", "cert")

# Bash reaps what is orphaned in the pid namespace, as an init does. It looks up its pid while /proc is the host's yet.
HOLD = """
read -r pid _ </proc/self/stat
mount -t proc proc /proc && mount -t tmpfs -o mode=0755 tmpfs "$1" && echo "$pid" && read -r _
"""


class DebianError(AssertionError):
    """A command failed or took too long; the message ends with what it said."""


@dataclass(frozen=True, slots=True)
class Space:
    """The namespaces, by the pid of the process that holds them, and the directory there that is in memory."""

    pid: int
    directory: Path

    def run(self, *command: str | Path, timeout: float = 60.0, env: Mapping[str, str] | None = None) -> str:
        """Run a command to its end, and return what it said on stdout and stderr; `env` is all of its environment."""
        __tracebackhide__ = True  # pytest would show the environment, where an index or a proxy may have its password
        shown = " ".join(map(str, command))
        try:
            done = subprocess.run(
                ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--", *command],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DebianError(f"`{shown}` took over {timeout:.0f} s; it said:\n{_tail(error.output)}") from error
        if done.returncode != 0:
            raise DebianError(f"`{shown}` failed ({done.returncode}); it said:\n{_tail(done.stdout)}")
        return done.stdout.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Debian:
    """The unpacked tree, which is all that its processes can reach of the file system."""

    space: Space
    environment: Mapping[str, str] = field(repr=False)

    def run(self, line: str, *, directory: str = ".", timeout: float = 60.0) -> str:
        """Run a line in a shell as root has it after logging in, and return what it printed."""
        __tracebackhide__ = True
        started = time.monotonic()
        command = ("env", f"--chdir={HOME}/{directory}", "sh", "-c", line)
        said = self.space.run(*command, timeout=timeout, env=self.environment)
        print(f"in the fresh Debian, `{line}`: {time.monotonic() - started:.0f} s")
        return said


@contextmanager
def fresh_debian(checkout: Path) -> Iterator[Debian]:
    """An empty tree that reaches the network as this machine does, and at `ORIGIN` what `checkout` has committed."""
    archive = _ensure_archive()
    with open_space() as space:
        tree = space.directory
        space.run("tar", "--extract", "--numeric-owner", "--file", archive, "--directory", tree)
        space.run("mount", "-t", "proc", "proc", tree / "proc")
        space.run("mount", "-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=0620", "devpts", tree / "dev/pts")
        _offer(space, checkout)
        network = _share_network(space)
        # Not chroot: who is in one is refused user namespaces, and a test of ours makes some.
        space.run("sh", "-c", 'cd "$1" && pivot_root . . && umount --lazy .', "sh", tree)
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        yield Debian(space, {"HOME": HOME, "PATH": path, **network})


def _offer(space: Space, checkout: Path) -> None:
    """Put the commit that `checkout` is at, and what led to it, into a repository in the tree.

    A push serves a checkout that CI made without history, or as another user, where a clone of it would not.
    """
    origin = f"{space.directory}{ORIGIN}"
    space.run("git", "init", "--quiet", "--bare", "--initial-branch=main", origin)
    space.run("git", "-C", origin, "config", "receive.shallowUpdate", "true")
    git = ("git", "-c", f"safe.directory={checkout}", "-C", checkout)
    space.run(*git, "push", "--quiet", "--no-verify", origin, "HEAD:refs/heads/main")


def _share_network(space: Space) -> dict[str, str]:
    """Let the tree reach the registries as this machine does, and return the environment variables for that.

    CI may sit behind a proxy, with a CA or a package index of its own. A person on such a network has set their machine
    up for it before they clone anything, so this is not a step of ours. Nothing is taken that could stand in for a
    download: no cache, and no directory with packages.
    """
    pip = {option.replace("-", "_"): value for option, value in _pip_options().items()}
    environment = {f"PIP_{name.upper()}": value for name, value in pip.items()}
    proxies = [*PROXY_VARIABLES, *map(str.upper, PROXY_VARIABLES)]
    for name in (*NETWORK_VARIABLES, *CA_VARIABLES, *proxies):
        if value := os.environ.get(name):
            environment[name] = value
    bundles = [value for name in CA_VARIABLES if (value := environment.get(name)) and Path(value).is_file()]
    copies = {path: path for path in ("/etc/hosts", "/etc/resolv.conf")}
    if bundles:
        copies[bundles[0]] = CA_BUNDLE
        environment.update({name: CA_BUNDLE for name in CA_VARIABLES if name in environment})
    for source, target in copies.items():
        if Path(source).exists():
            space.run("install", "-D", "--mode=0644", source, f"{space.directory}{target}")
    return environment


def _pip_options() -> dict[str, str]:
    """Return what pip's configuration says about the way to the index; the user's own file wins."""
    parser = configparser.RawConfigParser()
    parser.read([Path(name).expanduser() for name in PIP_FILES])
    return {name: parser["global"][name] for name in PIP_OPTIONS if parser.has_option("global", name)}


def start_holder(command: Sequence[str]) -> subprocess.Popen[str]:
    """Start what holds namespaces until its stdin closes; the first line that it says is a pid in them."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C is for the test, which ends this in turn
    )


@contextmanager
def open_space() -> Iterator[Space]:
    """Make the namespaces, which last until the end of the block, or of this process."""
    # Only `mount` in the namespaces sees what is in the directory: outside it stays empty, and is safe to remove.
    with tempfile.TemporaryDirectory(prefix="gatepass-debian-") as directory:
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", HOLD, "bash", directory]
        holder = start_holder(command)
        try:
            assert holder.stdout is not None
            said = holder.stdout.readline().strip()
            if not said.isdigit():
                raise DebianError(f"root may make no mounts in a namespace of its own here: {said}")
            yield Space(int(said), Path(directory))
        finally:
            holder.communicate()  # closes its stdin


def make_once(path: Path, make: Callable[[Path], None]) -> Path:
    """Return a file or directory of the cache. Where it is missing `make` makes it first, at the path that it is given.

    Safe to call from many processes at once. It gets its name when it is complete: what bears it can be used.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.partial")
    with (path.parent / ".debian.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _remove(staged)  # left by somebody who was killed
            try:
                make(staged)
                staged.rename(path)
            finally:
                _remove(staged)
    return path


def mmdebstrap(space: Space, release: str, packages: Iterable[str], target: Path, form: str) -> None:
    """Fetch a minimal Debian with these packages to `target`, which becomes a "tar" or a "directory"."""
    mirror = _mirror()
    print(f"gatepass e2e: fetching Debian {release} from {mirror} …", file=sys.stderr, flush=True)
    options = ("--quiet", "--mode=root", f"--format={form}", "--variant=minbase", f"--include={','.join(packages)}")
    environment = {**os.environ, "TMPDIR": str(space.directory)}
    space.run("mmdebstrap", *options, release, target, mirror, timeout=MAKE_TIMEOUT, env=environment)


def _ensure_archive() -> Path:
    return make_once(cache_dir() / f"{RELEASE}-{'-'.join(PACKAGES)}.tar", _make_archive)


def _make_archive(archive: Path) -> None:
    with open_space() as space:
        mmdebstrap(space, RELEASE, PACKAGES, archive, "tar")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _mirror() -> str:
    """Return the mirror that this machine installs from when it is a Debian: it may be the only one in reach."""
    system = platform.freedesktop_os_release()
    if system["ID"] != "debian":
        return MIRROR
    command = ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        release, component, uri = line.split(maxsplit=2)
        # Others than Debian also call their releases by its names.
        if (release, component) == (system.get("VERSION_CODENAME"), "main") and "debian" in uri:
            return uri
    return MIRROR


def _tail(said: bytes | None, lines: int = 100) -> str:
    return "\n".join((said or b"").decode(errors="replace").splitlines()[-lines:])
