"""How long after `revoke` or `lock` the last live WebSocket has its close frame, and when the command is answered.

    .venv/bin/python bench/revoke.py [--sessions 1 50 200] [--rounds 20] [--openclaw]

Broker and proxy are processes of their own; the gateway behind is the tests' (with --openclaw the real one, as root).
The floor, in the same run: a process that writes a close frame to as many TCP connections when it gets a byte on a Unix
socket, and then answers. That is one way; here the word has two, and two connections for each session to close.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import os
import secrets
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from gatepass import Client
from gatepass.frames import FrameDecoder, encode_frame
from support.broker import BrokerProcess, own_rule
from support.gateway import acting_as, free_port, gateway_tables, to_toml
from support.upstream import OPERATOR_SCOPES, running_upstream

AT_ONCE = 5
"""Logins at a time: the proxy lets one user have six that are not over."""
SECONDS = 30
CLOSE = 0x88
CLOSE_FRAME = bytes([CLOSE, 62]) + struct.pack("!H", 1008) + b"x" * 60
ROOM = {"connections": 2_000, "connections_per_uid": 1_000}


class Chain(NamedTuple):
    """What the benchmark talks to."""

    port: int
    admin_socket: str
    uid: int
    """Whose sessions they are."""
    token: Callable[[], str]


class Round(NamedTuple):
    """One measurement, in seconds from the request."""

    first: float
    last: float
    answered: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 50, 200])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--openclaw", action="store_true", help="before the real OpenClaw")
    options = parser.parse_args()
    print(f"{'sessions':>8}  {'what':8}  {'last close frame':>18}  {'answered':>18}  {'first':>8}  ratio to the floor")
    print(f"{'':8}  {'':8}  {'median':>8}  {'p95':>8}  {'median':>8}  {'p95':>8}  {'median':>8}  of the last close")
    with _real_chain() if options.openclaw else _chain() as chain, _floor() as floor:
        asyncio.run(_measure(chain, floor, options.sessions, options.rounds))


async def _measure(chain: Chain, below: Floor, sizes: list[int], rounds: int) -> None:
    for size in sizes:
        floor = [await _floor_round(below, size) for _ in range(rounds)]
        _print(size, "floor", floor, floor)
        async with _administration(chain.admin_socket) as ask:
            for operation in ("revoke", "lock"):
                _print(size, operation, [await _round(chain, ask, operation, size) for _ in range(rounds)], floor)


def _print(size: int, what: str, rounds: list[Round], floor: list[Round]) -> None:
    last, answered = [r.last for r in rounds], [r.answered for r in rounds]
    ratio = statistics.median(last) / statistics.median(r.last for r in floor)
    figures = [statistics.median(last), _p95(last), statistics.median(answered), _p95(answered)]
    figures.append(statistics.median(r.first for r in rounds))
    print(f"{size:8}  {what:8}  {'  '.join(f'{figure * 1e3:5.1f} ms' for figure in figures)}  {ratio:6.1f}", flush=True)


def _p95(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.95))]


# One round

Ask = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


async def _round(chain: Chain, ask: Ask, operation: str, size: int) -> Round:
    token = chain.token()
    sessions = await _log_in(chain, token, size)
    await _until_reported(ask, size)
    request = {"op": "revoke", "by": "jti", "value": _jti(token)} if operation == "revoke" else {"op": "lock"}
    started = time.perf_counter()
    reply = await ask(request)
    answered = time.perf_counter()
    assert reply["ok"], reply
    closed = [await asyncio.wait_for(session.closed, SECONDS) for session in sessions]
    for session in sessions:
        session.transport.abort()
    if operation == "lock":
        await ask({"op": "unlock"})
    return Round(min(closed) - started, max(closed) - started, answered - started)


async def _until_reported(ask: Ask, size: int) -> None:
    """Wait until the broker knows of the sessions: what the proxy has not reported yet would be measured with them."""
    while True:
        reply = await ask({"op": "sessions"})
        if len(reply["sessions"]) + reply["more"] >= size:
            return
        await asyncio.sleep(0.01)


def _jti(token: str) -> str:
    payload = token.split(".")[1]
    jti: str = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["jti"]
    return jti


@asynccontextmanager
async def _administration(path: str) -> AsyncIterator[Ask]:
    """Connect to the broker's socket; yield what sends one request and returns the reply."""
    reader, writer = await asyncio.open_unix_connection(path)
    decoder, ids = FrameDecoder(), itertools.count(1)

    async def ask(request: dict[str, Any]) -> dict[str, Any]:
        writer.write(encode_frame({"v": 1, "id": next(ids), **request}))
        while (message := decoder.next_message()) is None:
            data = await reader.read(65_536)
            assert data, "the broker closed the connection"
            decoder.feed(data)
        return dict(message)

    yield ask
    writer.close()


# WebSockets, as thin as can be: what they do themselves is measured, too


class _Session(asyncio.Protocol):
    """A client that logs in and then waits for a close frame."""

    transport: asyncio.Transport

    def __init__(self, token: str) -> None:
        loop = asyncio.get_running_loop()
        self.logged_in: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[float] = loop.create_future()
        self._token = token
        self._data = b""
        self._upgraded = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        fields = f"Host: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
        transport.write(f"GET / HTTP/1.1\r\n{fields}Sec-WebSocket-Version: 13\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._data += data
        if not self._upgraded:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            assert head.startswith(b"HTTP/1.1 101"), head
            self._upgraded, self._data = True, rest
        while (frame := self._next_frame()) is not None:
            self._take(*frame, now)

    def _next_frame(self) -> tuple[int, bytes] | None:
        data = self._data
        if len(data) < 4:
            return None
        length, start = data[1] & 0x7F, 2
        if length == 126:  # RFC 6455 section 5.2
            length, start = int.from_bytes(data[2:4], "big"), 4
        elif length == 127:
            length, start = int.from_bytes(data[2:10], "big"), 10
        if len(data) < start + length:
            return None
        self._data = data[start + length :]
        return data[0], data[start : start + length]

    def _take(self, kind: int, payload: bytes, now: float) -> None:
        if kind == CLOSE:
            if not self.closed.done():
                self.closed.set_result(now)
            self.transport.write(bytes([CLOSE, 0x80]) + bytes(4))
        elif not self.logged_in.done():
            message = json.loads(payload)
            if message.get("event") == "connect.challenge":
                self._send(_connect(self._token))
            elif message.get("type") == "res":
                assert message["ok"], message
                self.logged_in.set_result(None)

    def _send(self, message: bytes) -> None:
        size = len(message)
        self.transport.write(bytes([0x81, 0x80 | 126]) + struct.pack("!H", size) + bytes(4) + message)  # masked by 0


def _connect(token: str) -> bytes:
    params = {
        "minProtocol": 3,
        "maxProtocol": 4,
        "client": {"id": "cli", "version": "2026.9.6", "platform": "linux", "mode": "cli"},
        "caps": [],
        "role": "operator",
        "scopes": ["operator.read"],
        "auth": {"password": token},
    }
    return json.dumps({"type": "req", "id": "one", "method": "connect", "params": params}).encode()


async def _log_in(chain: Chain, token: str, size: int) -> list[_Session]:
    places = asyncio.Semaphore(AT_ONCE)

    async def one() -> _Session:
        async with places:
            with acting_as(chain.uid) if chain.uid != os.geteuid() else nullcontext():
                connection = socket.create_connection(("127.0.0.1", chain.port))
            connection.setblocking(False)
            loop = asyncio.get_running_loop()
            _, session = await loop.create_connection(lambda: _Session(token), sock=connection)
            await asyncio.wait_for(session.logged_in, SECONDS)
            return session

    return await asyncio.gather(*(one() for _ in range(size)))


# The floor


class Floor(NamedTuple):
    """A process that only writes close frames."""

    path: str
    port: int


@contextmanager
def _floor() -> Iterator[Floor]:
    with tempfile.TemporaryDirectory() as directory:
        floor = Floor(f"{directory}/floor.sock", free_port())
        process = subprocess.Popen([sys.executable, __file__, "--serve-floor", floor.path, str(floor.port)])
        try:
            while not Path(floor.path).exists():
                time.sleep(0.02)
            yield floor
        finally:
            process.kill()
            process.wait()


async def _floor_round(floor: Floor, size: int) -> Round:
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(size):
        _, protocol = await loop.create_connection(_Waiting, "127.0.0.1", floor.port)
        connections.append(protocol)
    reader, writer = await asyncio.open_unix_connection(floor.path)
    writer.write(b"?")
    while int.from_bytes(await reader.readexactly(2), "big") != size:
        await asyncio.sleep(0.01)
        writer.write(b"?")
    started = time.perf_counter()
    writer.write(b"!")
    await reader.readexactly(2)
    answered = time.perf_counter()
    closed = [await protocol.closed for protocol in connections]
    for protocol in connections:
        protocol.transport.abort()
    writer.close()
    return Round(min(closed) - started, max(closed) - started, answered - started)


class _Waiting(asyncio.Protocol):
    """Waits for its close frame."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.closed: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, _: bytes) -> None:
        if not self.closed.done():
            self.closed.set_result(time.perf_counter())


class _Told(asyncio.Protocol):
    """The other end, until that closes."""

    open: ClassVar[dict[asyncio.Protocol, asyncio.WriteTransport]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.open[self] = transport

    def connection_lost(self, _: Exception | None) -> None:
        del self.open[self]


async def _serve_floor(path: str, port: int) -> None:
    """Write a close frame to every TCP connection when `!` comes on the Unix socket, then answer how many there are."""

    async def administer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while what := await reader.read(1):
            for session in _Told.open.values() if what == b"!" else ():
                session.write(CLOSE_FRAME)
            writer.write(len(_Told.open).to_bytes(2, "big"))

    await asyncio.get_running_loop().create_server(_Told, "127.0.0.1", port)
    await asyncio.start_unix_server(administer, path)
    await asyncio.Event().wait()


# What is measured


@contextmanager
def _chain() -> Iterator[Chain]:
    """Broker and proxy of this user's own, before the tests' gateway in a process of its own."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as parts:
        directory = Path(name)
        behind = subprocess.Popen([sys.executable, __file__, "--serve-gateway"], stdout=subprocess.PIPE, text=True)
        parts.callback(behind.wait)
        parts.callback(behind.kill)
        assert behind.stdout is not None
        upstream = int(behind.stdout.readline())
        broker = parts.enter_context(BrokerProcess(directory, rules=[own_rule(scopes=list(OPERATOR_SCOPES))]))
        tables = gateway_tables(upstream, keys={"broker_socket": str(broker.socket)}, limits=ROOM)
        config = directory / "gateway.toml"
        config.write_text(to_toml(tables))
        config.chmod(0o600)
        log = parts.enter_context((directory / "gateway.log").open("ab"))
        proxy = subprocess.Popen([sys.executable, "-m", "gatepass_gateway", "--config", str(config)], stderr=log)
        parts.callback(proxy.wait)
        parts.callback(proxy.terminate)
        while "event=keys" not in (said := (directory / "gateway.log").read_text()) or "event=ready" not in said:
            assert proxy.poll() is None, said
            time.sleep(0.02)
        client = parts.enter_context(Client(str(broker.socket)))
        yield Chain(tables["listen"]["port"], str(broker.socket), os.geteuid(), lambda: client.issue().token)


async def _serve_gateway() -> None:
    async with running_upstream() as gateway:
        print(gateway.port, flush=True)
        await asyncio.Event().wait()


@contextmanager
def _real_chain() -> Iterator[Chain]:
    from e2e.openclaw_install import ensure_openclaw  # noqa: PLC0415
    from e2e.stack import GatepassInstall, Stack  # noqa: PLC0415

    class RoomyStack(Stack):
        def _more_proxy_toml(self) -> str:
            return super()._more_proxy_toml() + to_toml({"limits": ROOM})

    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        with RoomyStack(GatepassInstall(Path(directory)), ensure_openclaw()) as stack:
            yield Chain(stack.port, str(stack.admin_socket), stack.owner.uid, stack.token)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve-floor"]:
        asyncio.run(_serve_floor(sys.argv[2], int(sys.argv[3])))
    elif sys.argv[1:2] == ["--serve-gateway"]:
        asyncio.run(_serve_gateway())
    else:
        main()
