"""Long-lived clients of OpenClaw: its own client library in Node, and `openclaw tui` in a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import queue
import re
import shutil
import struct
import subprocess
import tempfile
import termios
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from e2e.accounts import as_account
from e2e.openclaw_install import OpenClawInstall
from e2e.openclaw_instance import Account, OpenClawInstance

SCRIPT = Path(__file__).with_name("live_client.mjs")
SECONDS = 30.0

Event = dict[str, Any]


class LiveClient:
    """One client, of `account`; `options` are those of OpenClaw's `GatewayClient`. A context manager.

    It connects at once, and reconnects by itself as OpenClaw's clients do.
    """

    def __init__(self, install: OpenClawInstall, account: Account, port: int, **options: Any) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="live-client-"))
        self._home.chmod(0o755)
        script = shutil.copy(SCRIPT, self._home)
        Path(script).chmod(0o644)
        os.chown(self._home, account.uid, account.gid)
        self._process = subprocess.Popen(
            [install.node, script, install.entry.parent],
            cwd="/",
            env={"PATH": os.defpath, "HOME": str(self._home), "OPENCLAW_STATE_DIR": str(self._home / "state")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            **as_account(account),
        )
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._send(url=f"ws://127.0.0.1:{port}", **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        shutil.rmtree(self._home, ignore_errors=True)

    def wait_for(self, *kinds: str) -> Event:
        """Return the next event of these kinds, past others: `hello`, `close`, `error`, `paused`, `device`."""
        deadline = time.monotonic() + SECONDS
        passed: list[Event] = []
        while True:
            try:
                event = self._events.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {' or '.join(kinds)}, only {passed}") from None
            if event["event"] in kinds:
                return event
            passed.append(event)

    def call(self, method: str, **params: Any) -> Event:
        """Call a method and return `{ok, payload}` or `{ok, message}`."""
        self._send(method=method, params=params)
        answer = self.wait_for("answer", "close")
        assert answer["event"] == "answer", answer
        return answer

    def is_alive(self) -> bool:
        """Whether the session that it has is still served."""
        return self.call("health")["ok"] is True

    def _send(self, **line: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._events.put(json.loads(line))


class Tui:
    """`openclaw tui` of `instance`, in a terminal of its own. A context manager."""

    def __init__(self, instance: OpenClawInstance) -> None:
        self._terminal, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
        self._process = subprocess.Popen(
            [instance.install.node, instance.install.entry, "tui"],
            cwd="/",
            env={**instance.environment(), "TERM": "xterm-256color"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            **as_account(instance.account),
        )
        os.close(terminal)
        self._shown = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        os.close(self._terminal)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def shown(self) -> str:
        """All that it has written to its terminal, without the terminal's control sequences."""
        return re.sub(
            r"\x1b(\[[0-9;?>]*[A-Za-z]|\][^\x07\x1b]*(\x07|\x1b\\)|[=>])|\r", "", self._shown.decode(errors="replace")
        )

    def wait_for(self, text: str, offset: int = 0) -> None:
        """Wait until it has shown `text` after `offset`, a length of an earlier `shown`."""
        deadline = time.monotonic() + SECONDS
        while text not in self.shown[offset:]:
            assert self.running, f"it ended: {self.shown}"
            assert time.monotonic() < deadline, f"'{text}' was not shown: {self.shown[offset:]}"
            time.sleep(0.05)

    def _read(self) -> None:
        with suppress(OSError):  # the end of a terminal
            while data := os.read(self._terminal, 65_536):
                self._shown += data
