"""How long a client waits when the broker, or the proxy, is restarted or crashes under it.

    .venv/bin/python bench/restart.py [--rounds 20]

The sockets are handed over as systemd does it, and the next run is started at once, after a crash in 200 ms as the
units have it (`RestartSec=`), which is not counted here. A client asks without a pause, each time on a new connection:
for a token, or for a page of the gateway behind with one. A request that a crash has cut short is sent again.
A round's figure is the longest wait for an answer.

The floor, in the same run: a process that imports asyncio, is restarted in the same way, and answers a byte.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from gatepass import Client
from support.broker import BrokerProcess, own_rule
from support.gateway import free_port, gateway_tables, to_toml
from support.manager import WITH_OWN_PID, TestManager
from support.upstream import OPERATOR_SCOPES, running_upstream

SETTLED_SECONDS = 0.5
"""Between two rounds: what a start leaves to do is not part of the next."""


FLOOR = """
import asyncio, socket

async def answer(_, writer):
    writer.write(b"!")
    writer.close()

async def serve():
    await asyncio.start_server(answer, sock=socket.socket(fileno=3))
    await asyncio.Event().wait()

asyncio.run(serve())
"""


class Service(NamedTuple):
    """What is restarted."""

    name: str
    manager: TestManager
    command: list[str]
    log: Path
    ask: Callable[[], None]
    """One client's request, on a new connection. Raises `OSError` or `HTTPException` if it was cut short."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--serve-gateway", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_gateway:
        asyncio.run(_serve_gateway())
        return
    print(f"{'':8}  {'what':8}  {'undisturbed':>11}  {'median':>8}  {'longest':>8}  ratio to the floor")
    floors: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as parts:
        for service in _services(Path(directory), parts):
            for what, number in (("restart", signal.SIGTERM), ("crash", signal.SIGKILL)):
                _print(service.name, what, *_measure(service, number, options.rounds), floors)


def _print(name: str, what: str, usual: float, waits: list[float], floors: dict[str, float]) -> None:
    median = statistics.median(waits)
    ratio = median / floors.setdefault(what, median)
    figures = f"{usual * 1e3:8.1f} ms  {median * 1e3:5.0f} ms  {max(waits) * 1e3:5.0f} ms"
    print(f"{name:8}  {what:8}  {figures}  {ratio:6.1f}", flush=True)


def _measure(service: Service, number: signal.Signals, rounds: int) -> tuple[float, list[float]]:
    """Return what a request takes undisturbed, and the longest wait of each round, in seconds."""
    with service.log.open("ab") as log:
        process = _start(service, log)
        asking = _Asking(service.ask)
        try:
            asking.wait_for(20)
            service.manager.drain()
            usual, waits = statistics.median(asking.taken), []
            for _ in range(rounds):
                time.sleep(SETTLED_SECONDS)
                asking.taken.clear()
                process.send_signal(number)
                process.wait()
                process = _start(service, log)
                asking.wait_for(len(asking.taken) + 3)
                service.manager.drain()
                waits.append(max(asking.taken))
        finally:
            asking.stop()
            process.kill()
            process.wait()
    return usual, waits


def _start(service: Service, log: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(service.command, stderr=log, stdout=log, **service.manager.service())


class _Asking:
    """A client in a thread of its own that asks without a pause."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self.taken: list[float] = []
        self._ask = ask
        self._over = False
        self._fault: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait_for(self, answers: int) -> None:
        """Wait until there were so many since `taken` was last cleared."""
        while len(self.taken) < answers:
            if self._fault is not None:
                raise self._fault
            time.sleep(0.01)

    def stop(self) -> None:
        self._over = True
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._over:
                started = time.perf_counter()
                while not self._is_answered():
                    pass
                self.taken.append(time.perf_counter() - started)
        except Exception as fault:  # noqa: BLE001 - raised where it is waited for
            self._fault = fault

    def _is_answered(self) -> bool:
        try:
            self._ask()
        except (OSError, http.client.HTTPException):
            return False
        return True


# What is measured


def _services(directory: Path, parts: ExitStack) -> Iterator[Service]:
    yield _floor(directory, parts)
    broker = BrokerProcess(directory, rules=[own_rule(scopes=list(OPERATOR_SCOPES))])
    command = [*WITH_OWN_PID, sys.executable, "-m", "gatepass_broker", "--config", str(broker.config)]
    manager = _manager(directory, "broker", parts)
    manager.listen_unix(broker.socket, 0o600)
    log = directory / "broker.log"
    yield Service("broker", manager, command, log, lambda: _ask_broker(broker.socket))

    with log.open("ab") as stream, _held(_start(Service("", manager, command, log, lambda: None), stream)):
        yield _proxy(directory, broker.socket, parts)


def _ask_broker(path: Path) -> None:
    with Client(str(path)) as client:
        client.issue()


def _proxy(directory: Path, broker: Path, parts: ExitStack) -> Service:
    behind = subprocess.Popen([sys.executable, __file__, "--serve-gateway"], stdout=subprocess.PIPE, text=True)
    parts.enter_context(_held(behind))
    assert behind.stdout is not None
    tables = gateway_tables(int(behind.stdout.readline()), keys={"broker_socket": str(broker)})
    config = directory / "gateway.toml"
    config.write_text(to_toml(tables))
    config.chmod(0o600)
    port: int = tables["listen"]["port"]
    manager = _manager(directory, "proxy", parts)
    manager.sockets["proxy"] = [socket.create_server(("127.0.0.1", port), backlog=1024)]
    with Client(str(broker)) as client:
        token = client.issue().token

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
        connection.close()

    command = [*WITH_OWN_PID, sys.executable, "-m", "gatepass_gateway", "--config", str(config)]
    return Service("proxy", manager, command, directory / "gateway.log", ask)


def _floor(directory: Path, parts: ExitStack) -> Service:
    manager, port = _manager(directory, "floor", parts), free_port()
    manager.sockets["floor"] = [socket.create_server(("127.0.0.1", port), backlog=1024)]

    def ask() -> None:
        with socket.create_connection(("127.0.0.1", port), 30) as connection:
            if connection.recv(1) != b"!":
                raise ConnectionResetError

    command = [*WITH_OWN_PID, sys.executable, "-c", FLOOR]
    return Service("floor", manager, command, directory / "floor.log", ask)


def _manager(directory: Path, name: str, parts: ExitStack) -> TestManager:
    own = directory / name
    own.mkdir()
    return parts.enter_context(TestManager(own))


@contextmanager
def _held(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def _serve_gateway() -> None:
    async with running_upstream() as gateway:
        print(gateway.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    main()
