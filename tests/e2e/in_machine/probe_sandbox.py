"""What code in a service's process could do. Run by a test inside a booted machine, under a unit's own settings.

Prints a JSON object: for each thing tried, null where it succeeded, else the error's number.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWUSER = 0x10000000


def _call(name: str, *arguments: int | bytes | None) -> None:
    if getattr(_LIBC, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)


def _write(path: str) -> None:
    Path(path).write_text("")
    Path(path).unlink()


def _connect(host: str, port: int) -> None:
    with socket.create_connection((host, port), 2):
        pass


def _anonymous_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def _core() -> None:
    if resource.getrlimit(resource.RLIMIT_CORE) == (0, 0):
        raise PermissionError(1, "no core dump")


TRIED: dict[str, Callable[[], object]] = {
    "internet socket": lambda: socket.socket(socket.AF_INET).close(),
    "netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close(),
    "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "connect elsewhere": lambda: _connect("192.0.2.10", 22),
    "read /home": lambda: os.listdir("/home/derek"),  # noqa: PTH208
    "read /root": lambda: os.listdir("/root"),  # noqa: PTH208
    "write /etc": lambda: _write("/etc/gatepass/x"),
    "write /opt": lambda: _write("/opt/gatepass/x"),
    "write /var": lambda: _write("/var/lib/x"),
    "write /run": lambda: _write("/run/gatepass/x"),
    "write its state": lambda: _write("/var/lib/gatepass/x"),
    "write its runtime directory": lambda: _write(f"{os.environ.get('RUNTIME_DIRECTORY', '/run/none')}/x"),
    "see other processes": lambda: os.stat("/proc/1/cmdline"),  # noqa: PTH116
    "read another's cgroup": lambda: Path("/proc/1/cgroup").read_bytes(),
    "read another's environment": lambda: Path("/proc/1/environ").read_bytes(),
    "read another's memory": lambda: Path("/proc/1/mem").open("rb").close(),
    "look into another's files": lambda: os.listdir("/proc/1/fd"),  # noqa: PTH208
    "hold another process": lambda: os.close(os.pidfd_open(1)),
    "signal another process": lambda: signal.pidfd_send_signal(os.pidfd_open(1), 0),
    "read the kernel's log": lambda: Path("/dev/kmsg").open("rb").close(),
    "become root": lambda: os.setuid(0),
    "make code": _anonymous_code,
    "dump core": _core,
    "ptrace": lambda: _call("ptrace", 16, 1, 0, 0),
    "mount": lambda: _call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "user namespace": lambda: _call("unshare", _CLONE_NEWUSER),
    "set the clock": lambda: _call("settimeofday", b"\0" * 16, None),
    "session keyring": lambda: _call("syscall", 250, 0, -3, 0),
    "bpf": lambda: _call("syscall", 321, 0, 0, 0),
}


def _try(action: Callable[[], object]) -> int | None:
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return None


print(json.dumps({what: _try(action) for what, action in TRIED.items()}))
