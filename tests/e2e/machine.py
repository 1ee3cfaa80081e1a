"""A Debian with a real systemd, booted in a second (root only): what happens in it is what happens on a machine.

systemd-nspawn boots a tree of the cache, under an overlay in memory. All of it runs in mount, pid and cgroup namespaces
that a process holds which ends when its stdin does: however the test ends, by SIGKILL even, the kernel takes the
processes, the mounts and the files away, and a shell that waits for that removes the cgroups and the mount point.

A command comes in through `nsenter`. It joins the namespaces of the machine's systemd, and on the way a cgroup of the
machine: that of a scope `session-e2e-UID.scope` in the slice of its user, as a login has it. Without that it would be
in the cgroup of the test, which nothing inside has a name for. The first command of a user has systemd make the scope;
the others write their pid to its `cgroup.procs`, which takes no time and works while D-Bus is stopped or PID 1 busy.

Not as on real hardware: there is no udev; /proc/sys is read-only but for net/; root can neither set the clock nor load
modules; TasksMax=, MemoryMax= and their like are not in force; a `reboot` inside is not followed: use stop(), boot().
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import pytest

from e2e.machine_tree import MachineError, ensure_tree, enter, hold, prepare
from e2e.openclaw_install import OpenClawInstall

__all__ = ["BridgeContainer", "Machine", "MachineError", "Process", "needs_machine"]

needs_machine = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to boot a machine"),
    pytest.mark.skipif(
        not shutil.which("mmdebstrap"), reason="needs mmdebstrap: on Debian, apt-get install mmdebstrap"
    ),
    pytest.mark.skipif(
        not shutil.which("systemd-nspawn"),
        reason="needs systemd-nspawn: on Debian, "
        "apt-get install systemd-container=$(dpkg-query -W -f '${Version}' systemd)",
    ),
]

BOOT_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0
KILL_TIMEOUT = 5.0
POLL = 0.02

WHEELS = "/srv/wheels"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INIT_SCOPE = "init.scope"
"""The cgroup of the machine's PID 1: where a process is when it has no session yet."""

UNDER_WAY = ("", "offline", "unknown", "initializing", "starting")
"""The states that a boot passes through, the first of them before systemd can be asked."""

POWER_OFF = signal.SIGRTMIN + 4
"""What systemd takes for `systemctl poweroff`."""

# Whole at once: what reads the file while it is written finds the old one.
WRITE = """
mkdir -p "$(dirname "$1")" && install -m 600 /dev/stdin "$1.new" && chown "$3" "$1.new" && chmod "$2" "$1.new" &&
mv -T "$1.new" "$1"
"""


class Account(NamedTuple):
    """A user, as the machine's passwd has it now."""

    name: str
    uid: int
    gid: int
    home: str


ROOT = Account("root", 0, 0, "/root")


class Process(subprocess.Popen[str]):
    """A process in the machine. Signals go to itself, not to the `nsenter` that waits for it and ends as it does."""

    @property
    def command_pid(self) -> int:
        """The pid of the command itself, as the host sees it."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        while self.poll() is None:
            with contextlib.suppress(OSError):  # it ends right now
                if found := children.read_text().split():
                    return int(found[0])
            time.sleep(POLL / 10)
        raise ProcessLookupError(self.pid)

    @property
    def finished(self) -> bool:
        """Tell whether it has ended and all that it said has been read."""
        return self.poll() is not None and all(pipe is None or pipe.closed for pipe in (self.stdout, self.stderr))

    def send_signal(self, sig: int) -> None:
        """Send it a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.command_pid, sig)
            if sig == signal.SIGCONT:
                os.kill(self.pid, sig)  # nsenter stops when what it waits for does

    def destroy(self) -> None:
        """Kill it, with what it has started in its process group, unless it has ended, and close its pipes."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError), self:  # closes and waits
            pass


@dataclass(frozen=True, slots=True)
class BridgeContainer:
    """The network of a container as Docker makes one: behind a bridge of the machine, which is its default route."""

    machine: Machine
    name: str = "container"
    address: str = "198.51.100.2"
    host_address: str = "198.51.100.1"
    """The machine's own address at the bridge."""
    address6: str = "2001:db8:1::2"
    host_address6: str = "2001:db8:1::1"

    @property
    def namespace(self) -> Path:
        """The network namespace, at a path that the host can open."""
        return Path(f"/proc/{self.machine.pid}/root/run/netns/{self.name}")

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command as root in the container's network; `options` are those of `Machine.run`."""
        return self.machine.run("ip", "netns", "exec", self.name, *command, **options)


class Machine:
    """A tree with what was written to it, and while it is booted, its systemd.

    What one boot has written the next one finds; nothing of it outlives the object. With `openclaw`, Node and OpenClaw
    can be run inside, at the paths that they have here. The wheels to install gatepass from are in `wheels`.
    """

    wheels = WHEELS

    def __init__(self, release: str, *, openclaw: OpenClawInstall | None = None, hostname: str = "gatepass") -> None:
        self.release = release
        self.hostname = hostname
        self._binds = [_modules(path) for path in (openclaw.node, openclaw.entry)] if openclaw else []
        self._space = 0
        self._nspawn: Process | None = None
        self._pid = 0
        self._processes: list[Process] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Machine:
        with contextlib.ExitStack() as parts:
            scratch = tempfile.TemporaryDirectory(prefix="gatepass-machine-", ignore_cleanup_errors=True)
            self.directory = Path(parts.enter_context(scratch))
            self._console: IO[str] = parts.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            parts.callback(self._end_processes)
            self._space = parts.enter_context(hold(self.directory, ensure_tree(self.release)))
            prepare(self._space, self.directory, self.release, self.hostname)
            self._parts = parts.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._parts.close()

    def boot(self, timeout: float = BOOT_TIMEOUT, *, wanted: Sequence[str] = ("running",)) -> None:
        """Boot and wait for a state that `systemctl is-system-running` knows.

        Raises MachineError with the units that failed when it ends in another: "degraded", when some did.
        """
        if self._nspawn:
            raise MachineError("the machine is booted already")
        deadline = time.monotonic() + timeout
        self._nspawn = self._start_nspawn()
        state = ""
        while state not in wanted:
            self._check_boot(state, deadline)
            time.sleep(POLL)
            state = self._state(deadline)

    def stop(self, timeout: float = STOP_TIMEOUT) -> bool:
        """Power off, by force after `timeout` seconds; tell whether it went without. Does nothing when it is off."""
        if not self._nspawn:
            return True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, POWER_OFF)
        try:
            self._nspawn.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        else:
            return True
        finally:
            self._end_processes()

    @property
    def pid(self) -> int:
        """The pid of the machine's PID 1, as the host sees it."""
        if not self._pid:
            raise MachineError("the machine is not booted; call boot()")
        return self._pid

    def run(
        self,
        *command: str,
        user: str | None = None,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        timeout: float = 30,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end as `user`, else as root, with what a login has; `env` adds to it.

        Raises MachineError if it takes over `timeout` seconds, and with `check` if it fails.
        """
        __tracebackhide__ = True
        account = self.account(user)
        environment = {**self._environment(account), **(env or {})}
        done = self._run(account, command, cgroup=self._session(account), stdin=stdin, env=environment, timeout=timeout)
        if check and done.returncode != 0:
            raise MachineError(f"`{' '.join(command)}` failed ({done.returncode}):\n{_tail(done.stdout + done.stderr)}")
        return done

    def popen(
        self, *command: str, user: str | None = None, env: Mapping[str, str] | None = None, **options: Any
    ) -> Process:
        """Start a command as `run` does; `options` are those of Popen. It ends with this boot, if not before."""
        account = self.account(user)
        environment = {**self._environment(account), **(env or {})}
        return self._popen(account, command, self._session(account), environment, **options)

    def shell(self, line: str, user: str | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a line in a shell; `options` are those of `run`."""
        return self.run("sh", "-c", line, user=user, **options)

    def account(self, name: str | None) -> Account:
        """Look the user up, who may be a dynamic one."""
        if name in (None, "root"):
            return ROOT
        done = self._run(ROOT, ("getent", "passwd", str(name)), cgroup=INIT_SCOPE)
        if done.returncode != 0:
            raise MachineError(f"the machine has no user {name!r}; make one with add_user()")
        found, _, uid, gid, _, home, _ = done.stdout.rstrip("\n").split(":")
        return Account(found, int(uid), int(gid), home)

    def add_user(
        self,
        name: str,
        groups: Sequence[str] = (),
        *,
        system: bool = False,
        home: str | None = None,
        linger: bool = False,
    ) -> Account:
        """Make an account with a home. With `linger` its service manager runs from now on, and after each boot."""
        options = ["--system", "--shell=/usr/sbin/nologin"] if system else ["--shell=/bin/bash"]
        options += [f"--groups={','.join(groups)}"] if groups else []
        options += [f"--home-dir={home}"] if home else []
        self.run("useradd", "--create-home", "--user-group", *options, name)
        account = self.account(name)
        if linger:
            self.run("loginctl", "enable-linger", name)
            self.systemctl("start", f"user@{account.uid}.service")  # returns when it is up
        return account

    def write(self, path: str, text: str, mode: int = 0o644, owner: str = "root") -> None:
        """Put a file there, whole at once, and the directories above it. `owner` may be as in "root:adm"."""
        self.run("sh", "-c", WRITE, "sh", path, f"{mode:o}", owner if ":" in owner else f"{owner}:", stdin=text)

    def read(self, path: str) -> str:
        """Return what is in a file."""
        return self.run("cat", path).stdout

    def systemctl(self, *arguments: str, user: str | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        """Talk to the system's manager, or to that of `user`; `options` are those of `run`."""
        __tracebackhide__ = True
        try:
            return self.run("systemctl", *(["--user"] if user else []), *arguments, user=user, **options)
        except MachineError as error:
            raise MachineError(f"{error}\n{self._journal_tail()}") from None

    def property(self, unit: str, name: str, user: str | None = None) -> str:
        """Return a property of a unit, as `systemctl show` has it."""
        return self.systemctl("show", f"--property={name}", "--value", unit, user=user).stdout.strip()

    def journal(self, unit: str, user: str | None = None) -> str:
        """Return what a unit, of the system or of `user`, and systemd about it, have logged since the boot."""
        self.run("journalctl", "--sync")
        which = [f"--unit={unit}"]
        if user:  # --user-unit is about units of the user who asks
            uid = f"_UID={self.account(user).uid}"
            which = [uid, f"_SYSTEMD_USER_UNIT={unit}", "+", uid, f"USER_UNIT={unit}"]
        return self.run("journalctl", "--quiet", "--boot", "--no-pager", *which).stdout

    def wait_until(self, predicate: Callable[[], object], timeout: float = 10) -> None:
        """Wait until the predicate holds. Raises MachineError with the end of the journal when it does not in time."""
        deadline = time.monotonic() + timeout
        while not predicate():
            if time.monotonic() > deadline:
                raise MachineError(f"what the test waited for did not happen in {timeout} s\n{self._journal_tail()}")
            time.sleep(POLL)

    @contextmanager
    def bridge_container(self) -> Iterator[BridgeContainer]:
        """Make a network namespace behind a bridge, until the end of the block."""
        container = BridgeContainer(self)
        steps = f"""\
link add bridge0 type bridge
address add {container.host_address}/24 dev bridge0
address add {container.host_address6}/64 dev bridge0 nodad
link add bridge0p1 type veth peer name eth0 netns {container.name}
link set bridge0p1 master bridge0 up
link set bridge0 up
"""
        steps_inside = f"""\
link set lo up
address add {container.address}/24 dev eth0
address add {container.address6}/64 dev eth0 nodad
link set eth0 up
route add default via {container.host_address}
route add default via {container.host_address6}
"""
        try:
            self.run("ip", "netns", "add", container.name)
            self.run("ip", "-batch", "-", stdin=steps)
            self.run("ip", "-netns", container.name, "-batch", "-", stdin=steps_inside)
            yield container
        finally:
            # A namespace takes its links along only after `ip netns delete` has returned.
            for link in ("bridge0p1", "bridge0"):
                self.run("ip", "link", "delete", link, check=False)
            self.run("ip", "netns", "delete", container.name, check=False)

    def _nspawn_command(self) -> list[str]:
        """Return the command that boots.

        All system calls are let through: what a unit's sandbox forbids must not be forbidden by nspawn already. And
        without the capabilities for bpf, which IPAddressDeny= is made of, systemd would silently not enforce it.
        """
        return [
            *("systemd-nspawn", f"--directory={self.directory}/root", "--boot", "--quiet", "--console=pipe"),
            *(f"--machine={self.hostname}", "--register=no", "--keep-unit", "--private-network"),
            *("--link-journal=no", "--resolv-conf=off", "--timezone=off", "--system-call-filter=@known"),
            "--capability=CAP_BPF,CAP_PERFMON",
            f"--bind-ro={self.directory}/wheels:{WHEELS}",
            *(f"--bind-ro={modules}" for modules in self._binds),
        ]

    def _start_nspawn(self) -> Process:
        self._console.seek(0)
        self._console.truncate()
        return Process(
            enter(self._space, "", *self._nspawn_command()),
            env={"PATH": PATH, "LANG": "C.UTF-8", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def _find_init(self) -> int:
        """Return the pid of PID 1, or 0 if there is none in the cgroups of the machine."""
        # os.walk() goes on where a cgroup ends meanwhile, as they do at a shutdown.
        for cgroup, _, _ in os.walk(f"/proc/{self._space}/root/sys/fs/cgroup/payload"):
            with contextlib.suppress(OSError):
                for pid in Path(cgroup, "cgroup.procs").read_text().split():
                    if _is_init(pid):
                        return int(pid)
        return 0

    def _takes_orders(self) -> bool:
        """Tell whether systemd listens."""
        pid = self._pid or self._find_init()
        if pid and Path(f"/proc/{pid}/root/run/systemd/private").exists():
            self._pid = pid
        return self._pid != 0

    def _state(self, deadline: float) -> str:
        """Return what the boot has come to, waiting for that once systemd listens."""
        if not self._takes_orders():
            return ""
        waiting = ("systemctl", "is-system-running", "--wait")
        with contextlib.suppress(MachineError):
            return self._run(ROOT, waiting, cgroup=INIT_SCOPE, timeout=deadline - time.monotonic()).stdout.strip()
        return "starting"

    def _check_boot(self, state: str, deadline: float) -> None:
        """Give up on a boot that will not succeed any more."""
        assert self._nspawn is not None
        late = time.monotonic() > deadline
        if state not in UNDER_WAY or late or self._nspawn.poll() is not None:
            said = self._journal_tail() if self._pid and self._nspawn.poll() is None else ""
            self._console.seek(0)
            console = _tail(self._console.read())
            self._end_processes()
            raise MachineError(f"Debian {self.release} did not boot, it is {state or 'off'}:\n{console}\n{said}")

    def _end_processes(self) -> None:
        """End this boot: what was started in it, and itself, by force where it is not off."""
        nspawn, self._nspawn = self._nspawn, None
        if nspawn:
            _kill(self._find_init(), nspawn)
        for process in self._processes:
            process.destroy()
        self._processes.clear()
        self._pid = 0

    def _session(self, account: Account) -> str:
        """Return the cgroup of the user's session, having systemd make it unless it is there."""
        slice_, unit = f"user-{account.uid}.slice", f"session-e2e-{account.uid}.scope"
        cgroup = f"user.slice/{slice_}/{unit}"
        procs = Path(f"/proc/{self.pid}/root/sys/fs/cgroup/{cgroup}/cgroup.procs")
        with self._lock:
            if _holds_processes(procs):
                return cgroup
            # It lasts as long as a process is in it.
            properties = (f"--unit={unit}", f"--slice={slice_}", "--property=TimeoutStopSec=1s")
            command = ("systemd-run", "--quiet", "--scope", "--collect", *properties, "sleep", "infinity")
            keeper = self._popen(ROOT, command, INIT_SCOPE)
            while not _holds_processes(procs):
                if keeper.poll() is not None:
                    raise MachineError(f"no session for {account.name}: {keeper.communicate()}\n{self._journal_tail()}")
                time.sleep(POLL / 10)
        return cgroup

    def _environment(self, account: Account) -> dict[str, str]:
        """Return what a login of the user has in its environment."""
        runtime = f"/run/user/{account.uid}"
        base = {"PATH": PATH, "HOME": account.home, "USER": account.name, "LOGNAME": account.name, "LANG": "C.UTF-8"}
        if not Path(f"/proc/{self.pid}/root{runtime}").exists():
            return base
        return {**base, "XDG_RUNTIME_DIR": runtime, "DBUS_SESSION_BUS_ADDRESS": f"unix:path={runtime}/bus"}

    def _popen(
        self,
        account: Account,
        command: Sequence[str],
        cgroup: str,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Process:
        if account is not ROOT:  # with the groups that /etc/group has now
            identity = (f"--reuid={account.uid}", f"--regid={account.gid}", "--init-groups")
            command = ("setpriv", *identity, "--", *command)
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        entering = enter(self.pid, cgroup, *command)
        process = Process(entering, env=env or {"PATH": PATH}, text=True, start_new_session=True, **pipes)
        self._processes = [*(old for old in self._processes if not old.finished), process]
        return process

    def _run(
        self,
        account: Account,
        command: Sequence[str],
        *,
        cgroup: str,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        timeout: float = 30,
    ) -> subprocess.CompletedProcess[str]:
        __tracebackhide__ = True
        process = self._popen(account, command, cgroup, env, stdin=subprocess.PIPE)
        try:
            out, err = process.communicate(stdin, timeout)
        except subprocess.TimeoutExpired as error:
            said = (error.output or b"") + (error.stderr or b"")
            process.destroy()
            shown = _tail(said.decode(errors="replace") if isinstance(said, bytes) else said)
            raise MachineError(f"`{' '.join(command)}` took over {timeout:g} s; it said:\n{shown}") from None
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def _journal_tail(self) -> str:
        """Return the units that failed or wait, and the end of the journal."""
        ask = functools.partial(self._run, ROOT, cgroup=INIT_SCOPE)
        failed = ask(("systemctl", "--failed", "--plain", "--no-legend")).stdout
        jobs = ask(("systemctl", "list-jobs", "--no-legend")).stdout
        journal = ask(("journalctl", "--boot", "--no-pager", "--lines=40")).stdout
        units = f"failed units: {failed.strip() or 'none'}\njobs: {jobs.strip() or 'none'}"
        return f"{units}\nthe journal ends with:\n{journal}"


def _kill(init: int, nspawn: Process) -> None:
    """Kill PID 1, which would survive the end of nspawn and takes all others along, and nspawn, which ends with it.

    Not by `cgroup.kill`: on Linux 6.18 what systemd 257 starts at a later boot in the same cgroups is killed at once.
    """
    if init:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.kill(init, signal.SIGKILL)
            nspawn.wait(KILL_TIMEOUT)
    nspawn.destroy()


def _is_init(pid: str) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return any(line.startswith("NSpid:") and line.split()[-1] == "1" for line in status.splitlines())


def _holds_processes(procs: Path) -> bool:
    try:
        return procs.read_text() != ""
    except OSError:
        return False


def _modules(path: Path) -> Path:
    """Return the `node_modules` that a file of an installation is in."""
    return next(parent for parent in reversed(path.parents) if parent.name == "node_modules")


def _tail(said: str, lines: int = 60) -> str:
    return "\n".join(said.splitlines()[-lines:])
