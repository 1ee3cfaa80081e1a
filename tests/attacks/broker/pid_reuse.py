"""Takes the pid of a process that has connected for another process, and prints whom the broker then sees.

Run by test_pid_reuse.py as process 1 of a small pid namespace: `python pid_reuse.py KERNEL TOP`. The connector runs in
TOP/attacker.service and leaves its connection to a child; the process that gets its pid runs in TOP/openclaw.service.
Prints one line for each moment at which that happens: never, before the broker looks, or behind one of its steps.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gatepass_broker import peer as peer_module
from gatepass_broker import pidfd as pidfds
from gatepass_broker.peer import attest
from gatepass_broker.pidfd import boottime
from gatepass_broker.places import Places
from support.seccomp import OLD_KERNELS, refuse

STEPS: dict[str, tuple[Any, str]] = {
    "holding": (peer_module, "_hold"),
    "opened": (pidfds, "_begun_by"),
    "id": (pidfds, "cgroup_id"),
    "namespaces": (pidfds, "is_nested"),
    "path": (pidfds, "cgroup_path"),
    "inode": (peer_module, "pidfs_inode"),
}
"""The pid changes hands just before this step."""
OLD_ENOUGH = 0.04
"""Seconds after which a process is known to have begun before now: a tick has a hundredth."""


class Pids:
    """A pid, which a connector has at first."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._go_reader, self._go_writer = os.pipe()
        self._done_reader, self._done_writer = os.pipe()
        self.pid = 0
        self.taken = False

    def connect(self, address: str) -> int:
        """Let the connector connect, and return a moment before that."""
        self.pid = self._fork("attacker.service", lambda: self._connector(address))
        time.sleep(OLD_ENOUGH)
        absent_at = boottime()
        os.write(self._go_writer, b"x")
        os.read(self._done_reader, 1)
        return absent_at

    def _connector(self, address: str) -> None:
        os.read(self._go_reader, 1)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            if os.fork() == 0:
                signal.pause()  # and keeps it open
            os.write(self._done_writer, b"x")
            signal.pause()

    def take(self) -> None:
        """Let the connector end and another process have its pid, once."""
        if self.taken:
            return
        self.taken = True
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(self.pid - 1))
        if self._fork("openclaw.service", signal.pause) != self.pid:
            raise RuntimeError("the pid went to a third process")

    def _fork(self, unit: str, run: Callable[[], object]) -> int:
        pid = os.fork()
        if pid == 0:
            os.read(self._go_reader, 1)
            run()
        (self._top / unit / "cgroup.procs").write_text(str(pid))
        os.write(self._go_writer, b"x")
        return pid

    def taking(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return `step`, before which the pid changes hands."""

        def taken(*arguments: Any) -> Any:
            self.take()
            return step(*arguments)

        return taken


def look(moment: str, top: Path) -> dict[str, Any]:
    """Return what is seen of a caller whose pid changes hands at `moment`."""
    pids = Pids(top)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("")
        listening.listen()
        absent_at = pids.connect(listening.getsockname())
        connection, _ = listening.accept()
    if moment == "before":
        pids.take()
    module, name = STEPS.get(moment, (pids, "take"))
    step = getattr(module, name)
    setattr(module, name, pids.taking(step))
    try:
        with connection:
            peer = attest(connection, Places.of_this_machine(), absent_at)
    finally:
        setattr(module, name, step)
    caller = peer.caller
    return {
        "moment": moment,
        "taken": pids.taken,
        "pid": caller.pid == pids.pid,
        "now_in": Path(f"/proc/{pids.pid}/cgroup").read_text().strip().rpartition("/")[2],
        "unit": None if caller.cgroup is None else caller.cgroup.unit,
        "process": caller.process,
        "now_process": inode_of(pids.pid),
        "nested": caller.nested,
        "unsettled": caller.unsettled,
        "exited": peer.has_exited(),
        "held": peer._pidfd is not None,
    }


def inode_of(pid: int) -> int | None:
    """Return the inode of the process that has `pid`, if this kernel tells."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        return os.fstat(pidfd).st_ino
    finally:
        os.close(pidfd)


def main() -> None:
    """Do it at each moment."""
    kernel, top = sys.argv[1:]
    refuse(*OLD_KERNELS[kernel])
    for moment in ("never", "before", *STEPS):
        print(json.dumps(look(moment, Path(top))), flush=True)


if __name__ == "__main__":
    main()
