"""The service manager of a daemon: what it hands over, and what it is told (sd_listen_fds(3), sd_notify(3)).

By hand, because each is a few lines and the packages for it are stale. Everything is taken out of the environment when
it is read, so that no child process takes itself for the service.
"""

from __future__ import annotations

import array
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from gatepass.errors import ConfigurationError, GatepassError

_FIRST_DESCRIPTOR: Final = 3
"""SD_LISTEN_FDS_START."""

FAILURE_SECONDS: Final = 3.0
"""How long a service that cannot start takes to end, when clients may be waiting for it."""

PATIENCE_SECONDS: Final = 5
"""How long news that must not be lost wait for room. Any user may write to the manager's socket, and so fill it."""


_TIMEVAL: Final = struct.Struct("@ll")


class Inherited(NamedTuple):
    """A file descriptor that the service manager hands over: a socket of a socket unit, or a file kept for us."""

    name: str
    """`FileDescriptorName=` of the socket unit, or the name under which it was kept."""
    descriptor: int


def inherited_descriptors() -> list[Inherited]:
    """Return what the service manager hands over; nothing where it starts somebody else. Children inherit none of it.

    Call it once, before anything else opens or closes descriptors.
    """
    pid, count, names = (os.environ.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES"))
    os.environ.pop("LISTEN_PIDFDID", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    descriptors = range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count))
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    listed = names.split(":") if names else []
    listed += ["unknown"] * (len(descriptors) - len(listed))  # as sd_listen_fds_with_names(3) calls them
    return [Inherited(name, descriptor) for name, descriptor in zip(listed, descriptors, strict=False)]


class Notifier:
    """Tells the service manager how the service is. Where there is none, every method does nothing.

    Nothing here raises: a manager that does not listen must not end the service. What it counts on (`ready`, `alive`,
    `forget`) waits for room, in vain for `PATIENCE_SECONDS` at most: not to be called where others are served.
    """

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        self.watchdog_seconds = watchdog_seconds
        """The manager kills the service when it has not heard `alive` for so long. None: it does not look."""
        self._address = address
        self.has_served = False
        """Whether `ready` was said."""
        self.told = ""
        """The status that was said last."""

    @classmethod
    def from_environment(cls) -> Notifier:
        """Return the notifier for the manager that started this process."""
        address = os.environ.pop("NOTIFY_SOCKET", None)
        usec, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        watched = usec.isdecimal() and pid in ("", str(os.getpid()))
        # A path, or an abstract socket; anything else is not one of systemd's.
        known = address is not None and address[:1] in ("/", "@")
        return cls(address if known else None, int(usec) / 1e6 if watched else None)

    @property
    def is_managed(self) -> bool:
        """Whether anybody is told."""
        return self._address is not None

    def ready(self, status: str) -> None:
        """Say that the service serves, at first or after `reloading`."""
        self.has_served, self.told = True, status
        self._send(f"READY=1\nSTATUS={status}", waits=True)

    def status(self, status: str) -> None:
        """Say in one line how the service is; `systemctl status` shows it."""
        self.told = status
        self._send(f"STATUS={status}")

    def reloading(self) -> None:
        """Say that the configuration is being read again. `ready` ends that."""
        # CLOCK_MONOTONIC: newer managers ignore an answer that is older than their question.
        monotonic_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_usec}")

    def stopping(self) -> None:
        """Say that the service ends by itself or as it was told to."""
        self._send("STOPPING=1\nSTATUS=stopping")

    def alive(self) -> None:
        """Reset the watchdog."""
        self._send("WATCHDOG=1", waits=True)

    def keep(self, name: str, descriptor: int) -> None:
        """Have the manager keep a file until `forget`, through restarts and crashes; it is inherited under `name`.

        `name` has no colon and no control character. Where the unit has no `FileDescriptorStoreMax=`, nothing is kept.
        """
        self._send(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", descriptor)

    def forget(self, name: str) -> None:
        """Have the manager close what it keeps under `name`."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}", waits=True)

    def _send(self, message: str, *descriptors: int, waits: bool = False) -> None:
        if self._address is None:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to_manager:
            # A file is worth waiting for without end, or it would be lost.
            waiting = 0 if descriptors or waits else socket.MSG_DONTWAIT
            if not descriptors:
                to_manager.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(PATIENCE_SECONDS, 0))
            to_manager.sendmsg([message.encode()], passed, socket.MSG_NOSIGNAL | waiting, address)


class Manager(NamedTuple):
    """All that a daemon has of its service manager. Without arguments: there is none."""

    notifier: Notifier = Notifier(None)
    inherited: tuple[Inherited, ...] = ()
    credentials: Path | None = None
    """The directory with the service's credentials (systemd.exec(5), CREDENTIALS_DIRECTORY)."""

    @classmethod
    def from_environment(cls) -> Manager:
        """Return what this process was started with. Call it once, before anything else opens a file."""
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        inherited = tuple(inherited_descriptors())
        return cls(Notifier.from_environment(), inherited, Path(directory) if directory else None)

    @contextmanager
    def slow_to_fail(self) -> Iterator[None]:
        """Tell the service manager what keeps a service from starting. With sockets, let it out only after a while.

        Whoever waits in a socket has the service started again as soon as it ends, without end; and a disk that is full
        is still so at once.
        """
        try:
            yield
        except (GatepassError, OSError) as error:
            if not self.notifier.has_served:
                why = "misconfigured" if isinstance(error, ConfigurationError) else "cannot start"
                self.notifier.status(f"{why}: {error}")
                if self.inherited:
                    time.sleep(FAILURE_SECONDS)
            raise

    def kept(self) -> list[Inherited]:
        """Return the files that were kept for us, maybe by another release."""
        return [entry for entry in self.inherited if not _is_socket(entry)]

    def sockets(self) -> list[Inherited]:
        """Return the sockets."""
        return [entry for entry in self.inherited if _is_socket(entry)]


def _is_socket(entry: Inherited) -> bool:
    return stat.S_ISSOCK(os.fstat(entry.descriptor).st_mode)
