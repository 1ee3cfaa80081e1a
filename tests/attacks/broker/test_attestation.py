"""Attacks 14, 15, 16 and 25 (docs/threat-model.md): real processes in real cgroups and namespaces.

Each on this kernel and on what older ones tell, by real seccomp filters in the process that attests.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gatepass.daemon.cgroups import hierarchy_root
from support.broker import acting_as
from support.cgroups import Slice, test_slice
from support.seccomp import OLD_KERNELS, can_refuse

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make namespaces and cgroups"),
    pytest.mark.skipif(not can_refuse(), reason="needs a machine whose system call numbers the test knows"),
]

TESTS = Path(__file__).parents[2]
CONNECT = "import socket, sys; c = socket.socket(socket.AF_UNIX); c.connect(sys.argv[1]); sys.stdin.read()"
OLD_ENOUGH = 0.04
"""Seconds after which a process is known to have begun before now: a tick has a hundredth."""
HEX = "0123456789abcdef" * 4

Caller = dict[str, Any]
KERNELS = [kernel for kernel in OLD_KERNELS if kernel != "5.2"]
NO_CGROUPS = hierarchy_root(Path("/proc/self/mountinfo").read_text()) is None
"""Whether this machine has no cgroups to look a caller up in, as a bare tree without mounts."""


class Attesting:
    """A process that attests whoever connects, on a kernel that tells as little as `kernel`."""

    def __init__(self, directory: Path, kernel: str, prefix: Sequence[str] = ()) -> None:
        self.address = str(directory / f"{kernel}.sock")
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "support.attesting", self.address, kernel],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(TESTS)},
        )
        assert self._line() == b"ready\n"

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def see(self, connect: Callable[[str], None] | None = None) -> Caller:
        """Return what it knows of a caller: this process, or what `connect` makes connect."""
        if connect is None:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(self.address)
                return self.next()
        connect(self.address)
        return self.next()

    def next(self) -> Caller:
        """Return what it knows of the next caller."""
        seen: Caller = json.loads(self._line())
        return seen

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module", params=KERNELS)
def attesting(request: pytest.FixtureRequest, shared: Path) -> Iterator[Attesting]:
    started = Attesting(shared, request.param)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def units() -> Iterator[Slice]:
    made = test_slice()
    yield made
    made.remove()


@contextmanager
def connected(attesting: Attesting, prefix: Sequence[str] = ()) -> Iterator[Caller]:
    """Let a process connect that is old enough, and stays. Yield what is known of it."""
    reader, writer = os.pipe()
    script = f"import os; os.read({reader}, 1); {CONNECT}"
    with subprocess.Popen(
        [*prefix, sys.executable, "-c", script, attesting.address], stdin=subprocess.PIPE, pass_fds=[reader]
    ) as process:
        time.sleep(OLD_ENOUGH)
        attesting.see()  # from here on the queue is known to have been empty
        os.write(writer, b"x")
        try:
            yield attesting.next()
        finally:
            process.communicate()
            os.close(reader)
            os.close(writer)


def test_this_process(attesting: Attesting) -> None:
    attesting.see()
    caller = attesting.see()
    assert (caller["uid"], caller["pid"], caller["nested"]) == (0, os.getpid(), False)
    assert (caller["unsettled"], caller["exited"]) == (False, False)
    pidfd = os.pidfd_open(os.getpid())
    assert caller["process"] == os.fstat(pidfd).st_ino
    os.close(pidfd)


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("openclaw.service", "openclaw.service"),
        ("openclaw.service/worker/x.service", "openclaw.service"),
        ("inner.slice/run-1.scope", "run-1.scope"),
        (f"docker-{HEX}.scope", f"docker-{HEX}.scope"),
        ("user@1000.service/openclaw.service", "user@1000.service/openclaw.service"),
        (f"user@1000.service/docker-{HEX}.scope", f"user@1000.service/docker-{HEX}.scope"),
        ("user@1000.service/system.slice/openclaw.service/x", "user@1000.service/openclaw.service"),
        ("delegated.service/openclaw.service", "delegated.service"),
        ("delegated.service/user@0.service/openclaw.service", "delegated.service"),
        ("payload/openclaw.service", None),
        ("openclaw.service.d", None),
        ("", None),
    ],
)
def test_25_a_process_in_a_cgroup_of_a_name(attesting: Attesting, units: Slice, path: str, unit: str | None) -> None:
    attesting.see()
    cgroup = units.make(path)
    with units.inside(cgroup):
        caller = attesting.see()
    seen = caller["cgroup"]
    assert (seen["id"], seen["path"]) == (cgroup.stat().st_ino, units.path(cgroup))
    name = f"{seen['unit']}/{seen['user_unit']}" if seen["user_unit"] else seen["unit"]
    assert name == unit
    assert seen["slices"][0] == units.name
    assert seen["container"] == (HEX if path == f"docker-{HEX}.scope" else None)
    own = units.path(cgroup).split("/worker")[0].removesuffix("/x") if unit else units.path(cgroup)
    if unit == "delegated.service":
        own = f"/{units.name}/delegated.service"
    assert seen["unit_id"] == Path(units._root + own).stat().st_ino


def test_25_a_unit_that_was_started_anew_is_another_cgroup(attesting: Attesting, units: Slice) -> None:
    attesting.see()
    ids = []
    for _ in range(2):
        cgroup = units.make("restarted.service")
        with units.inside(cgroup):
            ids.append(attesting.see()["cgroup"]["unit_id"])
        cgroup.rmdir()
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    "argv0", ["openclaw.service", "0::/system.slice/openclaw.service", ") S 1 (", "\x1b[31m\n0::/"]
)
def test_25_a_process_called_like_a_unit_is_in_none(attesting: Attesting, units: Slice, argv0: str) -> None:
    """Its name, its command line and its file are its own choice."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        file = Path(directory, argv0.replace("/", "_"))
        file.write_text(f"#!{sys.executable}\nimport sys\nsys.stdin.read(1)\n{CONNECT}\n")
        file.chmod(0o755)
        cgroup = units.make("plain.service")
        with units.inside(cgroup):
            process = subprocess.Popen([argv0, attesting.address], executable=file, stdin=subprocess.PIPE)
        with process:
            time.sleep(OLD_ENOUGH)
            attesting.see()
            assert process.stdin is not None
            process.stdin.write(b"x")
            process.stdin.flush()
            caller = attesting.next()
            process.communicate()
    assert (caller["pid"], caller["cgroup"]["unit"]) == (process.pid, "plain.service")


def test_a_process_in_a_pid_namespace_beneath_is_nested(attesting: Attesting) -> None:
    with connected(attesting, ["unshare", "--pid", "--fork", "--kill-child"]) as caller:
        assert (caller["nested"], caller["unsettled"], caller["exited"]) == (True, False, False)
        assert caller["pid"] > 1
        assert (caller["cgroup"] is None) is NO_CGROUPS


def test_a_process_whose_children_will_be_in_another_pid_namespace_is_not(attesting: Attesting) -> None:
    with connected(attesting, ["unshare", "--mount", "--ipc", "--uts"]) as caller:
        assert (caller["nested"], caller["unsettled"]) == (False, False)


def test_a_process_in_a_cgroup_namespace_is_where_it_is(attesting: Attesting, units: Slice) -> None:
    """It sees itself at the root. What counts is what the broker sees."""
    with units.inside(units.make("boxed.service")):
        process = connected(attesting, ["unshare", "--cgroup", "--mount"])
        with process as caller:
            assert caller["cgroup"]["unit"] == "boxed.service"
            os.kill(caller["pid"], 0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_15_a_caller_from_a_foreign_pid_namespace_is_known_by_its_user(shared: Path, kernel: str) -> None:
    """The broker's is beneath the caller's, and does not see it."""
    directory = Path(tempfile.mkdtemp(dir=shared))
    directory.chmod(0o755)
    attesting = Attesting(directory, kernel, ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"])
    try:
        attesting.see()
        with acting_as(4711, 4712, (4713,)):
            caller = attesting.see()
    finally:
        attesting.stop()
    assert (caller["uid"], caller["gid"], caller["groups"]) == (4711, 4712, [4713])
    unknown = ("pid", "process", "cgroup", "nested")
    assert {name: caller[name] for name in unknown} == dict.fromkeys(unknown)
    assert not caller["unsettled"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_15_in_the_proc_of_another_pid_namespace_nobody_is_looked_up(shared: Path, kernel: str) -> None:
    """There a pid is another process's: the broker runs in a pid namespace of its own without its own /proc."""
    directory = Path(tempfile.mkdtemp(dir=shared))
    directory.chmod(0o755)
    attesting = Attesting(directory, kernel, ["unshare", "--pid", "--fork", "--kill-child"])
    try:
        caller = attesting.see()
    finally:
        attesting.stop()
    assert (caller["pid"], caller["cgroup"], caller["nested"], caller["process"]) == (None, None, None, None)


def test_16_a_caller_from_a_user_namespace_is_its_own_user_outside_of_it(attesting: Attesting) -> None:
    namespace = ["unshare", "--user"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this kernel makes no user namespaces")
    with connected(attesting, namespace) as caller:
        assert (caller["uid"], caller["nested"]) == (0, False)
        assert (caller["cgroup"] is None) is NO_CGROUPS


def test_14_a_caller_that_connects_and_ends_is_known_by_nothing_that_its_pid_tells(attesting: Attesting) -> None:
    def connect_and_end(address: str) -> None:
        script = "import socket, sys; c = socket.socket(socket.AF_UNIX); c.connect(sys.argv[1])"
        os.kill(stopped, signal.SIGSTOP)
        try:
            subprocess.run([sys.executable, "-c", script, address], check=True)
        finally:
            os.kill(stopped, signal.SIGCONT)

    stopped = attesting._process.pid
    attesting.see()
    caller = attesting.see(connect_and_end)
    assert caller["uid"] == 0
    assert (caller["exited"], caller["nested"], caller["unsettled"]) == (True, None, False)
    assert caller["cgroup"] is None


@pytest.mark.parametrize("kernel", [*KERNELS, "5.2"])
def test_20_many_callers_leave_no_descriptor(shared: Path, kernel: str) -> None:
    directory = Path(tempfile.mkdtemp(dir=shared))
    attesting = Attesting(directory, kernel)
    try:
        descriptors = Path(f"/proc/{attesting._process.pid}/fd")
        attesting.see()
        before = len(list(descriptors.iterdir()))
        for _ in range(30):
            attesting.see()
        assert len(list(descriptors.iterdir())) == before
    finally:
        attesting.stop()


def test_where_no_pidfd_can_be_had_the_caller_is_a_user_for_good(shared: Path) -> None:
    directory = Path(tempfile.mkdtemp(dir=shared))
    attesting = Attesting(directory, "5.2")
    try:
        attesting.see()
        caller = attesting.see()
    finally:
        attesting.stop()
    assert (caller["uid"], caller["cgroup"], caller["process"]) == (0, None, None)
    assert (caller["nested"], caller["unsettled"]) == (None, False)
