"""A time namespace (time_namespaces(7)) in which the machine has been running for longer. Root only."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from e2e.openclaw_instance import Account


class LaterTime:
    """CLOCK_BOOTTIME is `seconds` ahead for what is started in it; the wall clock is the machine's.

    A context manager; the namespace goes with what runs in it.
    """

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds

    def command(self, command: Sequence[str | Path], account: Account) -> list[str | Path]:
        """Return the command line by which root runs `command` in it as `account`, in the same process."""
        entered = ["nsenter", f"--time={self._namespace}"]
        as_account = ["setpriv", f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups"]
        return [*entered, *as_account, "--", *command]

    def __enter__(self) -> LaterTime:
        self._holder = subprocess.Popen(
            ["unshare", "--time", "--boottime", str(self._seconds), "sleep", "infinity"], stdin=subprocess.DEVNULL
        )
        self._namespace = Path(f"/proc/{self._holder.pid}/ns/time_for_children")
        deadline = time.monotonic() + 10
        while self._namespace.readlink() == Path("/proc/self/ns/time").readlink():
            assert time.monotonic() < deadline, "unshare made no time namespace"
            time.sleep(0.01)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._holder.kill()
        self._holder.wait()
