"""One isolated, unmodified OpenClaw: a home of its own, a gateway process, and its CLI.

What an OpenClaw process reads lies in one temporary directory (`HOME`, `OPENCLAW_STATE_DIR` and `OPENCLAW_CONFIG_PATH`;
docs/help/environment.md of the package), and nothing in its environment carries a credential: what its CLI logs in with
comes from the configuration alone, as it does for a person at a terminal. Outside it OpenClaw writes a second log and
its locks only, in directories of its user's under /tmp.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from e2e.openclaw_install import OpenClawInstall

READY = re.compile(r"\[gateway\] ready")
# A start takes 8 to 15 s on an idle machine, a CLI command 2 to 4 s; a loaded CI machine gets several times that.
START_TIMEOUT = 90.0
STOP_TIMEOUT = 20.0
CLI_TIMEOUT = 60.0
POLL = 0.05


class OpenClawError(AssertionError):
    """The gateway did not do what the harness waited for; the message ends with its log."""


@dataclass(frozen=True, slots=True)
class Account:
    """The user that OpenClaw runs as."""

    uid: int
    gid: int

    @classmethod
    def unprivileged(cls) -> Account:
        """Return an account that is not root: our own, else `games`.

        OpenClaw itself runs under a uid without a passwd entry as well (tried), but rules that name users do not match
        such a uid. `games` exists on every Debian, owns no files, and unlike `nobody` is not what the kernel shows for
        uids that it cannot map.
        """
        return cls.named("games") if os.geteuid() == 0 else cls(os.geteuid(), os.getegid())

    @classmethod
    def named(cls, name: str) -> Account:
        """Look the account up in passwd."""
        entry = pwd.getpwnam(name)
        return cls(entry.pw_uid, entry.pw_gid)


class OpenClawInstance:
    """A gateway and its CLI in a directory of their own. Used as a context manager it stops and removes everything."""

    def __init__(self, install: OpenClawInstall, *, port: int, account: Account | None = None) -> None:
        self.install = install
        self.port = port
        self.account = account or Account.unprivileged()
        self.home = Path(tempfile.mkdtemp(prefix="openclaw-"))
        self.config_path = self.home / "openclaw.json"
        self.log_path = self.home / "gateway.log"
        self._gateway: subprocess.Popen[bytes] | None = None
        os.chown(self.home, self.account.uid, self.account.gid)

    def __enter__(self) -> OpenClawInstance:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def write_file(self, name: str, content: str, *, mode: int = 0o600) -> Path:
        """Put a file into the home, owned by OpenClaw's user; it replaces an old one atomically, as an editor does."""
        path = self.home / name
        staged = path.with_name(f".{path.name}.new")
        staged.write_text(content)
        staged.chmod(mode)
        os.chown(staged, self.account.uid, self.account.gid)
        staged.rename(path)
        return path

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the configuration. A running gateway reloads it within seconds."""
        self.write_file(self.config_path.name, json.dumps(config, indent=2))

    def environment(self) -> dict[str, str]:
        """Return the whole environment of every process started here; no variable in it carries a credential."""
        return {
            "PATH": f"{self.install.node.parent}:/usr/bin:/bin",
            "HOME": str(self.home),
            "OPENCLAW_STATE_DIR": str(self.home / "state"),
            "OPENCLAW_CONFIG_PATH": str(self.config_path),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
        }

    def start(self, timeout: float = START_TIMEOUT) -> None:
        """Start the gateway on `self.port` and wait until it says that it is ready."""
        if self.running:
            raise OpenClawError("the gateway is running already")
        offset = len(self.log_text())
        with self.log_path.open("ab") as log:
            self._gateway = self._popen("gateway", "run", "--port", str(self.port), stdout=log)
        self.wait_for_log(READY, timeout, offset)

    @property
    def running(self) -> bool:
        """Tell whether the gateway process that `start` made is alive."""
        return self._gateway is not None and self._gateway.poll() is None

    @property
    def pid(self) -> int:
        """The pid of the gateway: OpenClaw's launcher becomes it, in one process that leads a group of its own."""
        if self._gateway is None:
            raise OpenClawError("the gateway was not started")
        return self._gateway.pid

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stop the gateway, by force when it does not stop in time."""
        gateway, self._gateway = self._gateway, None
        if gateway is not None:
            _end(gateway, timeout)

    def close(self) -> None:
        """Stop the gateway and remove its directory."""
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    def cli(
        self,
        *args: str,
        timeout: float = CLI_TIMEOUT,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `openclaw ARGS` to its end; `env` adds variables.

        Somebody else's CLI is an instance of its own that is never started: it has its own home, as people have.
        """
        process = self._popen(*args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            _end(process)
            said = b"".join(process.communicate()).decode(errors="replace")
            raise OpenClawError(f"`openclaw {' '.join(args)}` took over {timeout:.0f} s; it said:\n{said}") from error
        return subprocess.CompletedProcess(args, process.returncode, out.decode(), err.decode())

    def log_text(self) -> str:
        """Return what the gateway has logged so far, over all its starts."""
        try:
            return self.log_path.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_for_log(self, pattern: str | re.Pattern[str], timeout: float, start_offset: int = 0) -> re.Match[str]:
        """Wait for `pattern` in what was logged after `start_offset`, a length of an earlier `log_text()`."""
        deadline = time.monotonic() + timeout
        while True:
            running = self.running  # asked before the log is read, so that a dead gateway's last words are seen
            if match := re.search(pattern, self.log_text()[start_offset:]):
                return match
            if not running:
                raise OpenClawError(f"the gateway ended before it logged {pattern!r}; its log:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                raise OpenClawError(
                    f"the gateway did not log {pattern!r} in {timeout:.0f} s; its log:\n{self._log_tail()}"
                )
            time.sleep(POLL)

    def _popen(
        self,
        *args: str,
        stdout: Any,
        stderr: int = subprocess.STDOUT,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start `openclaw ARGS` as the instance's user, in a process group of its own, without a terminal."""
        other: dict[str, Any] = {}
        if self.account.uid != os.geteuid():
            other = {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}
        return subprocess.Popen(
            [self.install.node, self.install.entry, *args],
            cwd="/",
            env={**self.environment(), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            **other,
        )

    def _log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log_text().splitlines()[-lines:])


def _end(process: subprocess.Popen[bytes], timeout: float = 5.0) -> None:
    """Ask a process to end, wait, and then kill its group.

    Asking comes first even where nobody will wait for an answer: the CLI runs its work in a child with a process group
    of its own, which ends only because its parent passes the signal on.
    """
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout)
    with contextlib.suppress(ProcessLookupError):  # nothing is left when all went well
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
