"""What a machine is made of: a Debian that systemd can boot, namespaces to boot it in, wheels to install gatepass from.

Trees and the wheels of others are made once per machine, in the cache of the end-to-end tests, outside the checkout.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e.debian_tree import Space, make_once, mmdebstrap, open_space, start_holder
from e2e.openclaw_install import cache_dir

PYTHON_VERSIONS = {"bookworm": "3.11", "trixie": "3.13"}
"""The releases, each with the version of its own Python."""

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "libnss-systemd"),
    *("python3", "python3-venv", "procps", "iproute2", "nftables", "nginx-light"),
    *("util-linux", "passwd", "ca-certificates"),
)

LAN = ("192.0.2.10", "2001:db8::10")
"""The machine's own addresses beside the loopback ones."""

DISABLED = ("nginx.service", "nftables.service")
"""What a test starts when it needs it."""

# Timers would start work in the middle of a test; the rest waits for, or complains of, what a container does not have.
MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("e2scrub_reap.service", "systemd-pstore.service", "systemd-networkd-wait-online.service"),
    *("getty@tty1.service", "console-getty.service", "systemd-firstboot.service"),
)

# A veth pair stands in for the network card: not every kernel has `dummy`, and an address needs a link that is up.
FILES = {
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/resolv.conf": "",
    "etc/systemd/journald.conf.d/e2e.conf": "[Journal]\nRateLimitIntervalSec=0\n",
    "etc/e2e-addresses": f"""\
link add lan0 type veth peer name wire0
address add {LAN[0]}/24 dev lan0
address add {LAN[1]}/64 dev lan0 nodad
link set wire0 up
link set lan0 up
""",
    "etc/systemd/system/e2e-addresses.service": """\
[Unit]
Description=The machine's addresses in its local network
DefaultDependencies=no
Before=sysinit.target network-pre.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ip -batch /etc/e2e-addresses

[Install]
WantedBy=sysinit.target
""",
}

# In a mount namespace of its own. It stays outside the cgroup that it makes, and cleans up when the rest has ended.
OUTER = """
set -e
mount -t tmpfs -o mode=0755 tmpfs "$1"
mkdir "$1/cgroup" "$1/upper" "$1/work" "$1/root"
mount -t cgroup2 cgroup2 "$1/cgroup"
group=$1/cgroup/${1##*/}
mkdir "$group"
(
    echo "$BASHPID" >"$group/cgroup.procs"
    exec unshare --mount --pid --cgroup --fork --kill-child bash -c "$3" bash "$1" "$2"
) || true
find "$group" -depth -type d -exec rmdir {} +
umount --lazy "$1"
rmdir "$1"
"""

# PID 1 of the namespaces: bash reaps what is orphaned, as an init does. /run is hidden because nspawn leaves files
# there, and the host's version 1 cgroups because a machine of today has none.
INNER = """
set -e
read -r pid _ </proc/self/stat
mount -t proc proc /proc
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
echo "$pid"
read -r _
"""

PREPARE = """
set -e
cd "$1"
echo "$2" >root/etc/machine-id
echo "$3" >root/etc/hostname
echo "127.0.1.1 $3" >>root/etc/hosts
mkdir wheels
cp "$4"/*.whl wheels
cat >"wheels/$5"
"""

# nsenter has joined all namespaces but the cgroup one: a process can be moved only within the one that it is in.
ENTER = """
umask 022
echo $$ >"/sys/fs/cgroup/$1/cgroup.procs" && shift && exec nsenter --target 1 --cgroup -- "$@"
"""

# Both releases have a glibc that is newer than any that these names stand for.
PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_28", "manylinux_2_34")
DOWNLOAD_TIMEOUT = 300.0
CHECKOUT = Path(__file__).resolve().parents[2]


class MachineError(AssertionError):
    """The machine did not boot, or a command in it failed or took too long; the message ends with what was said."""


@functools.cache
def ensure_tree(release: str) -> Path:
    """Return the tree of "bookworm" or "trixie", making it first where it is missing: half a minute and 270 MB.

    Only root can enter its parent: the tree has set-user-id programs, which nobody keeps up to date.
    """
    recipe = repr((PACKAGES, DISABLED, MASKED, FILES))
    trees = cache_dir() / "trees"
    trees.mkdir(mode=0o755, parents=True, exist_ok=True)
    trees.chmod(0o700)
    return make_once(trees / f"{release}-{_digest(recipe)}", functools.partial(_make_tree, release))


def _make_tree(release: str, tree: Path) -> None:
    with open_space() as space:
        mmdebstrap(space, release, PACKAGES, tree, "directory")
        _customise(space, tree)


def _customise(space: Space, tree: Path) -> None:
    tree.chmod(0o755)
    for name, content in FILES.items():
        file = tree / name
        file.unlink(missing_ok=True)  # mmdebstrap may have left a link
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    systemctl = ("chroot", tree, "systemctl", "--quiet")
    space.run(*systemctl, "disable", *DISABLED)
    space.run(*systemctl, "mask", *MASKED)
    space.run(*systemctl, "enable", "e2e-addresses.service")


@functools.cache
def ensure_wheels(python_version: str) -> Path:
    """Return a directory with the locked wheels of everything that gatepass's extras need on a Python, as "3.11"."""
    options = ("--frozen", "--extra", "all", "--no-default-groups", "--no-emit-project")
    locked = _run(sys.executable, "-m", "uv", "export", "--quiet", *options)
    directory = cache_dir() / f"wheels-{python_version}-{_digest(locked)}"
    return make_once(directory, functools.partial(_download, locked, python_version))


def _download(locked: str, python_version: str, target: Path) -> None:
    """Let pip download: it follows this machine's pip.conf and PIP_* variables, on the way to the index."""
    with tempfile.TemporaryDirectory(prefix="gatepass-pip-") as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(locked)
        # .venv has no pip. A new venv has the one that comes with Python.
        _run(sys.executable, "-m", "venv", f"{scratch}/venv")
        machine = platform.machine()
        platforms = [f"--platform={name}_{machine}" for name in PLATFORMS]
        wanted = ("--only-binary=:all:", "--implementation=cp", f"--python-version={python_version}", *platforms)
        pip = (f"{scratch}/venv/bin/python", "-m", "pip", "download", "--quiet", "--disable-pip-version-check")
        _run(*pip, "--require-hashes", "--no-deps", *wanted, f"--requirement={requirements}", f"--dest={target}")
    target.chmod(0o755)


@functools.cache
def own_wheel() -> tuple[str, bytes]:
    """Return the name and the content of a wheel of the checkout as it is now, built once in this process."""
    with tempfile.TemporaryDirectory(prefix="gatepass-wheel-") as directory:
        _run(sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", directory)
        (wheel,) = Path(directory).glob("*.whl")
        return wheel.name, wheel.read_bytes()


@contextmanager
def hold(directory: Path, tree: Path) -> Iterator[int]:
    """Make the namespaces with the overlay in `directory`/root, and yield the pid of the process that holds them."""
    command = ["unshare", "--mount", "bash", "-c", OUTER, "bash", str(directory), str(tree), INNER]
    holder = start_holder(command)
    try:
        assert holder.stdout is not None
        said = holder.stdout.readline()
        if not said.strip().isdigit():
            said += holder.stdout.read()
            raise MachineError(f"root may make no mounts or cgroups in a namespace of its own here: {said}")
        yield int(said)
    finally:
        rest, _ = holder.communicate()  # closes its stdin
    if rest:
        raise MachineError(f"not all of the machine could be removed: {rest}")


def enter(pid: int, cgroup: str, *command: str) -> list[str]:
    """Return the command line that runs `command` in the namespaces of a process and, as named there, a cgroup."""
    namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid")
    return ["nsenter", f"--target={pid}", *namespaces, "--", "sh", "-c", ENTER, "sh", cgroup, *command]


def prepare(space: int, directory: Path, release: str, hostname: str) -> None:
    """Give the tree a name and an identity, without which systemd takes all for new, and the wheels in `directory`."""
    name, wheel = own_wheel()
    others = ensure_wheels(PYTHON_VERSIONS[release])
    arguments = (str(directory), uuid.uuid4().hex, hostname, str(others), name)
    command = enter(space, "", "sh", "-c", PREPARE, "sh", *arguments)
    done = subprocess.run(command, input=wheel, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise MachineError(f"the machine could not be made: {done.stderr.decode()}")


def _run(*command: str) -> str:
    """Run a command in the checkout and return its stdout; what it said stands in the error when it fails."""
    __tracebackhide__ = True
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT, check=False)
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-4000:]
        raise AssertionError(f"`{' '.join(command)}` failed ({done.returncode}):\n{said}")
    return done.stdout


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
