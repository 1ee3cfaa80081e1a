"""A broker for tests: in the test's own event loop, or as a process of its own; and a client that can misbehave."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.to_thread

from gatepass.clock import Moment, now
from gatepass.daemon.toml_tables import check_tables
from gatepass.frames import FrameDecoder, Message, encode_frame
from gatepass_broker.config import resolve
from gatepass_broker.schema import File
from gatepass_broker.server import Server, running
from gatepass_broker.settings import Settings

USER = "derek@example.com"
SCOPES = ("operator.read", "operator.write")
ISSUER = "gatepass:test"
START_SECONDS = 20.0

Tables = Mapping[str, Any]


def own_rule(**changes: Any) -> dict[str, Any]:
    """Return a `[[rule]]` for the user who runs the tests."""
    return {"name": "own", "uid": os.geteuid(), "scopes": list(SCOPES), **changes}


def broker_tables(
    directory: Path, rules: Sequence[Tables] | None = None, sockets: Sequence[Tables] | None = None, **tables: Tables
) -> dict[str, Any]:
    """Return a configuration, as TOML would give it, whose files are all in `directory`.

    `tables` are merged into `[broker]`, `[limits]` and `[journal]`.
    """
    everything = {"path": str(directory / "broker.sock"), "mode": "0600", "allow": ["request", "follow", "admin"]}
    broker: dict[str, Any] = {
        "id": "test",
        "loopback_user": USER,
        "state_dir": str(directory / "state"),
        "jwks_file": str(directory / "jwks.json"),
        **tables.get("broker", {}),
    }
    return {
        "broker": broker,
        "limits": dict(tables.get("limits", {})),
        "journal": dict(tables.get("journal", {})),
        "socket": list(sockets if sockets is not None else [everything]),
        "rule": list(rules if rules is not None else [own_rule()]),
    }


def broker_settings(directory: Path, **arguments: Any) -> Settings:
    """Return the settings of `broker_tables`."""
    return resolve(check_tables(broker_tables(directory, **arguments), File), source="the test", digest="test")


def to_toml(tables: Tables) -> str:
    """Return `tables` as TOML. Strings must not need escapes."""
    lines: list[str] = []
    for name, table in tables.items():
        for entry in table if isinstance(table, list) else [table]:
            lines.append(f"[[{name}]]" if isinstance(table, list) else f"[{name}]")
            lines += [f"{key} = {_toml_value(value)}" for key, value in entry.items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


class SteppedClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time_offset = 0.0
        self.boot_offset = 0.0

    def __call__(self) -> Moment:
        moment = now()
        return moment._replace(time=moment.time + self.time_offset, boottime=moment.boottime + self.boot_offset)

    def pass_time(self, seconds: float) -> None:
        """Let both clocks go on."""
        self.time_offset += seconds
        self.boot_offset += seconds


@dataclass
class TestBroker:
    """A broker in the test's own event loop. Blocking clients belong into `in_thread`."""

    __test__ = False

    server: Server
    socket: Path
    directory: Path
    clock: SteppedClock

    async def ask(self, **request: Any) -> Message:
        """Send one request on a connection of its own and return the reply."""
        reply: Message = await in_thread(lambda: ask(self.socket, **request))
        return reply


@asynccontextmanager
async def running_broker(
    directory: Path, *, clock: SteppedClock | None = None, **arguments: Any
) -> AsyncIterator[TestBroker]:
    """Run a broker for the time of the block; `arguments` go to `broker_tables`."""
    os.chmod(directory, 0o755)  # noqa: PTH101 - pytest makes it for one user, other users are part of the tests
    clock = clock or SteppedClock()
    settings = broker_settings(directory, **arguments)
    async with running(settings, "test", clock) as server:
        yield TestBroker(server, settings.sockets[0].path, directory, clock)


async def in_thread(function: Callable[[], Any]) -> Any:
    """Run blocking test code beside the broker that it talks to."""
    return await anyio.to_thread.run_sync(function)


class BrokerProcess:
    """A broker as a process of its own. Use it as a context manager: it is killed at the end.

    `options` go after, `prefix` before its command line. Stderr goes to `directory/broker.log`; `log` reads it.
    """

    def __init__(
        self, directory: Path, *, options: Sequence[str] = (), prefix: Sequence[str] = (), **arguments: Any
    ) -> None:
        directory.chmod(0o755)
        self.directory = directory
        self.config = directory / "broker.toml"
        self.options, self.prefix = list(options), list(prefix)
        tables = broker_tables(directory, **arguments)
        self.socket = Path(tables["socket"][0]["path"])
        self.write_config(tables)
        self._process: subprocess.Popen[bytes] | None = None

    def write_config(self, tables: Tables) -> None:
        """Put another configuration into the file."""
        self.config.write_text(to_toml(tables))
        self.config.chmod(0o600)

    @property
    def pid(self) -> int:
        """The running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.directory / "broker.log").read_text()

    def start(self, **popen: Any) -> Self:
        """Start it and wait until it is ready."""
        seen = self.log.count("event=ready") if (self.directory / "broker.log").exists() else 0
        command = [*self.prefix, sys.executable, "-m", "gatepass_broker", "--config", str(self.config), *self.options]
        with (self.directory / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, stdout=log, **popen)
        self.wait_for_log("event=ready", times=seen + 1)
        return self

    def wait_for_log(self, text: str, *, times: int = 1) -> None:
        """Wait until `text` has been logged so often."""
        limit = time.monotonic() + START_SECONDS
        while self.log.count(text) < times:
            assert self._process is not None
            if self._process.poll() is not None:
                raise AssertionError(f"the broker ended ({self._process.returncode}):\n{self.log}")
            assert time.monotonic() < limit, f"'{text}' was not logged:\n{self.log}"
            time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        assert self._process is not None
        return self._process.wait(START_SECONDS)

    def stop(self) -> int:
        """Stop it in good order and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.signal(signal.SIGKILL)
        self.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


class RawClient:
    """A blocking connection to a broker, for whole frames or any bytes."""

    def __init__(self, path: Path, timeout: float = 10) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self._decoder = FrameDecoder()
        self._next_id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send any bytes."""
        self.socket.sendall(data)

    def receive(self) -> Message | None:
        """Return the next message, or None where the broker closed the connection."""
        while (message := self._decoder.next_message()) is None:
            try:
                data = self.socket.recv(65_536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._decoder.feed(data)
        return message

    def ask(self, **request: Any) -> Message:
        """Send one request (`op` and its parameters) and return the reply."""
        self._next_id += 1
        self.send(encode_frame({"v": 1, "id": self._next_id, **request}))
        reply = self.receive()
        assert reply is not None, "the broker closed the connection without a reply"
        return reply

    def is_closed(self) -> bool:
        """Wait for what comes next and return whether that is the end."""
        return self.receive() is None


def ask(path: Path, **request: Any) -> Message:
    """Send one request on a connection of its own and return the reply."""
    with RawClient(path) as client:
        return client.ask(**request)


def error_code(reply: Message) -> str:
    """Return the code of a reply that says no."""
    assert reply["ok"] is False, reply
    code: str = reply["error"]["code"]
    return code


@contextmanager
def acting_as(uid: int, gid: int, groups: Sequence[int] = ()) -> Iterator[None]:
    """Be another user for the time of the block, as far as files and SO_PEERCRED can tell. Takes root."""
    before = os.getgroups()
    os.setgroups(list(groups))
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)
