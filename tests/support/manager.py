"""A service manager for tests: it hands over sockets, keeps files and listens, by the protocols of systemd.

The real one runs the units in the end-to-end tests.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_FIRST = 3
_ROOM = 100
"""Descriptors are moved here before they are put in their places, so that none is overwritten."""


class TestManager:
    """Starts services with what it holds. Use it as a context manager."""

    __test__ = False

    def __init__(self, directory: Path) -> None:
        self.sockets: dict[str, list[socket.socket]] = {}
        """To hand over, by name."""
        self.kept: dict[str, int] = {}
        """What services gave to keep."""
        self.told: list[dict[str, str]] = []
        """What services said, as far as `listen` has read it."""
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._path = directory / "notify.sock"
        self._notify.bind(str(self._path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._notify.close()
        for group in self.sockets.values():
            for entry in group:
                entry.close()
        for descriptor in self.kept.values():
            os.close(descriptor)

    def listen_unix(self, path: Path, mode: int, name: str = "request") -> None:
        """Hold a listening Unix socket."""
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bound.bind(str(path))
        path.chmod(mode)
        bound.listen(64)
        self.sockets.setdefault(name, []).append(bound)

    def service(self, watchdog_seconds: float | None = None, **variables: str) -> dict[str, Any]:
        """Return the arguments of `subprocess.Popen` that start a service."""
        entries = [(name, entry.fileno()) for name, group in self.sockets.items() for entry in group]
        entries += self.kept.items()
        numbers = [number for _, number in entries]
        environment: Mapping[str, str] = {
            **os.environ,
            "NOTIFY_SOCKET": str(self._path),
            "LISTEN_FDS": str(len(entries)),
            "LISTEN_FDNAMES": ":".join(name for name, _ in entries),
            **({} if watchdog_seconds is None else {"WATCHDOG_USEC": str(int(watchdog_seconds * 1e6))}),
            **variables,
        }

        def put_in_place() -> None:
            for place, number in enumerate(numbers):
                os.dup2(number, _ROOM + place)
            for place in range(len(numbers)):
                os.dup2(_ROOM + place, _FIRST + place, inheritable=True)
                os.close(_ROOM + place)

        return {"env": environment, "preexec_fn": put_in_place, "close_fds": False}

    def listen(self, wanted: str, seconds: float = 20, *, prefix: bool = False) -> dict[str, str]:
        """Wait for a message with the assignment `wanted`, such as `READY=1`, and return it.

        With `prefix`, the value may go on after that.
        """
        key, _, value = wanted.partition("=")
        seen = 0
        deadline = time.monotonic() + seconds
        while True:
            for message in self.told[seen:]:
                said = message.get(key)
                if said == value or (prefix and said and said.startswith(value)):
                    self.told = self.told[self.told.index(message) + 1 :]
                    return message
            seen = len(self.told)
            self._notify.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                self._receive()
            except TimeoutError:
                raise AssertionError(f"nobody said {wanted}, but: {self.told}") from None

    def drain(self) -> None:
        """Read what was said so far."""
        self._notify.settimeout(0)
        while True:
            try:
                self._receive()
            except BlockingIOError:
                return

    def _receive(self) -> None:
        data, descriptors, _, _ = socket.recv_fds(self._notify, 4096, 8)
        message = dict(line.partition("=")[::2] for line in data.decode().splitlines())
        if "FDSTORE" in message:
            (self.kept[message["FDNAME"]],) = descriptors
        if "FDSTOREREMOVE" in message:
            os.close(self.kept.pop(message["FDNAME"]))
        self.told.append(message)


WITH_OWN_PID = ("sh", "-c", 'LISTEN_PID=$$; export LISTEN_PID; exec "$@"', "sh")
"""Put before a command: systemd tells a service its pid, which is known only once it runs."""


def in_memory(descriptor: int) -> bool:
    """Whether a file has no place in any file system."""
    return str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith("/memfd:")
