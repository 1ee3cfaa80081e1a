"""The gateway proxy for tests: in the test's own event loop or as a process, tokens for it, and clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import anyio
import anyio.abc
import h11
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gatepass.claims import BootDeadline, Claims, Confirmation, Process
from gatepass.clock import Moment, now
from gatepass.daemon.processes import pidfs_inode
from gatepass.daemon.systemd import Notifier
from gatepass.tokens import encode_token, header, jwk, thumbprint
from gatepass_gateway import server
from gatepass_gateway.config import Settings, resolve
from gatepass_gateway.schema import File
from support.manager import WITH_OWN_PID, TestManager
from support.upstream import (
    IDENTITY_SOURCE,
    OPERATOR_SCOPES,
    USER,
    USER_HEADER,
    FakeGateway,
    running_upstream,
)

ISSUER = "gatepass:test"
SECONDS = 10.0
"""How long anything in a test may take."""


class Minter:
    """A broker's key, and tokens by it that may say anything."""

    def __init__(self, issuer: str = ISSUER) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.public = self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.kid = thumbprint(self.public)
        self.issuer = issuer

    def claims(self, *, life: int = 300, age: int = 0, uid: int | None = None, **changes: Any) -> Claims:
        """Return claims that a test's own connection may show, `age` seconds after their issue, with changes."""
        moment = now()
        issued_at = int(moment.time) - age
        claims = Claims(
            issuer=self.issuer,
            subject=USER,
            audience="openclaw",
            issued_at=issued_at,
            expires_at=issued_at + life,
            token_id="a-token-id",
            scope=("operator.read", "operator.write"),
            actors=("uid:0",),
            confirmation=Confirmation(os.geteuid() if uid is None else uid),
            # A machine that was started a moment ago has no time before that.
            boot=BootDeadline(moment.boot_id, max(0, int(moment.boottime) - age + life)),
        )
        return claims._replace(**changes)

    def token(self, **changes: Any) -> str:
        """Return a token with `claims(**changes)`."""
        return encode_token(self.claims(**changes), header(self.kid), self.key.sign)

    def jwks(self) -> dict[str, Any]:
        """Return the key set with this key in it."""
        return {"keys": [jwk(self.public)]}


def free_port() -> int:
    """Return a port outside the range from which the kernel takes ports for outgoing connections."""
    while True:
        port = random.randrange(15_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def gateway_tables(upstream_port: int, *, port: int | None = None, **changes: Any) -> dict[str, Any]:
    """Return a configuration, as TOML would give it. `changes` are merged into the tables of their names."""
    tables: dict[str, Any] = {
        "listen": {"port": port or free_port()},
        "upstream": {"port": upstream_port, "identity_source": IDENTITY_SOURCE},
        "identity": {"user_header": USER_HEADER, "users": {USER: list(OPERATOR_SCOPES)}},
        "keys": {},
        "limits": {},
    }
    for name, table in changes.items():
        tables[name] = {**tables.get(name, {}), **table} if isinstance(table, Mapping) else table
    return tables


def gateway_settings(tables: Mapping[str, Any]) -> Settings:
    """Return the settings that `tables` stand for."""
    return resolve(msgspec.convert(tables, type=File, strict=True), source="the test")


@dataclass
class TestGateway:
    """A running proxy, the gateway behind it and the key that it trusts."""

    __test__ = False

    port: int
    upstream: FakeGateway
    minter: Minter
    jwks_file: Path
    settings: Settings
    logs: list[Any]
    """What the proxy has logged, as structlog's events."""

    def token(self, **changes: Any) -> str:
        """Return a token that is good here, with changes."""
        return self.minter.token(**changes)

    async def get(self, target: str = "/echo", *headers: tuple[str, str], **options: Any) -> Response:
        """Send one request on a connection of its own."""
        async with http_client(self.port) as client:
            return await client.request(options.pop("method", "GET"), target, *headers, **options)

    async def raw(self, data: bytes) -> bytes:
        """Send any bytes on a connection of its own and return all that comes back until it closes."""
        async with raw_client(self.port) as stream:
            with contextlib.suppress(anyio.BrokenResourceError):
                await stream.send(data)
            return await read_all(stream)

    def websocket(self, **options: Any) -> connect:
        """Return a WebSocket to the proxy, by an independent implementation; a context manager."""
        options = {"compression": None, "open_timeout": SECONDS, "close_timeout": 3, "max_size": None, **options}
        return connect(f"ws://127.0.0.1:{self.port}{options.pop('path', '/')}", proxy=None, **options)

    @asynccontextmanager
    async def login(self, secret: str | None = None, **changes: Any) -> AsyncIterator[ClientConnection]:
        """Log in with a token as OpenClaw's CLI does."""
        async with self.websocket() as client:
            reply = await login(client, {"password": self.token() if secret is None else secret}, **changes)
            assert reply["ok"], reply
            yield client


def gateway_that_is_down() -> FakeGateway:
    """Return the gateway behind as it is when nothing listens there."""
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        return FakeGateway(listener.getsockname()[1], listener)


@asynccontextmanager
async def running_gateway(
    directory: Path,
    *,
    upstream: FakeGateway | None = None,
    minter: Minter | None = None,
    notifier: Notifier | None = None,
    clock: Callable[[], Moment] = now,
    **changes: Any,
) -> AsyncIterator[TestGateway]:
    """Run a gateway and the proxy before it in this event loop; `changes` go to `gateway_tables`."""
    minter = minter or Minter()
    jwks_file = directory / "jwks.json"
    jwks_file.write_text(json.dumps(minter.jwks()))
    if "keys" not in changes:
        changes["keys"] = {"jwks_file": str(jwks_file), "issuer": ISSUER}
    changes.setdefault("sessions", {"state_dir": str(directory / "gateway-state")})
    async with contextlib.AsyncExitStack() as parts:
        behind = await parts.enter_async_context(running_upstream()) if upstream is None else upstream
        settings = gateway_settings(gateway_tables(behind.port, **changes))
        started = anyio.Event()
        logs = parts.enter_context(capture_logs())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.run, settings, lambda _: started.set(), (), notifier, clock)
            with anyio.fail_after(SECONDS):
                await started.wait()
                await anyio.lowlevel.checkpoint()
            gateway = TestGateway(settings.listen[0][1], behind, minter, jwks_file, settings, logs)
            try:
                with anyio.fail_after(25):
                    yield gateway
                faults = [entry for entry in logs if entry["event"] == "fault"]
                assert not faults, faults
                assert not any("eyJhbGci" in str(entry) for entry in logs), "a token is in the log"
            finally:
                tasks.cancel_scope.cancel()


# HTTP


class Response(NamedTuple):
    """A whole answer."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def json(self) -> Any:
        """Return the body, parsed."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object in a refusal."""
        error: dict[str, Any] = self.json()["error"]
        return error

    def values(self, name: str) -> list[str]:
        """Return the values of all fields of this name."""
        return [value for key, value in self.headers if key == name]


class HttpClient:
    """A keep-alive connection that speaks HTTP by h11."""

    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self.stream = stream
        self.state = h11.Connection(h11.CLIENT)
        self.informational: list[int] = []

    async def send(self, event: h11.Event) -> None:
        data = self.state.send(event)
        if data:
            await self.stream.send(data)

    async def start(self, method: str, target: str, *headers: tuple[str, str]) -> None:
        """Send a request line and header."""
        if self.state.our_state is h11.DONE:
            self.state.start_next_cycle()
        await self.send(h11.Request(method=method, target=target, headers=[("host", "gateway"), *headers]))

    async def next_event(self) -> Any:
        """Return what comes next, a `Response`'s part by part."""
        with anyio.fail_after(SECONDS):
            while (event := self.state.next_event()) is h11.NEED_DATA:
                try:
                    self.state.receive_data(await self.stream.receive())
                except anyio.EndOfStream:
                    self.state.receive_data(b"")
            return event

    async def response(self) -> Response:
        """Return the next answer, whole. Raise `h11.RemoteProtocolError` if it is cut off."""
        while isinstance(event := await self.next_event(), h11.InformationalResponse):
            self.informational.append(event.status_code)
        assert isinstance(event, h11.Response), event
        headers = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
        body = b""
        while isinstance(part := await self.next_event(), h11.Data):
            body += bytes(part.data)
        return Response(event.status_code, headers, body)

    async def request(
        self, method: str, target: str, *headers: tuple[str, str], body: bytes | list[bytes] = b""
    ) -> Response:
        """Send a request, its body with a length, or in chunks if it is a list; return the answer."""
        if isinstance(body, list):
            headers = (*headers, ("transfer-encoding", "chunked"))
        elif body:
            headers = (*headers, ("content-length", str(len(body))))
        await self.start(method, target, *headers)
        for piece in body if isinstance(body, list) else [body]:
            await self.send(h11.Data(data=piece))
        await self.send(h11.EndOfMessage())
        return await self.response()


def bearer(token: str) -> tuple[str, str]:
    """Return the header in which a token counts."""
    return ("authorization", f"Bearer {token}")


@asynccontextmanager
async def raw_client(port: int, host: str = "127.0.0.1") -> AsyncIterator[anyio.abc.SocketStream]:
    """Connect to the proxy, for any bytes."""
    async with await anyio.connect_tcp(host, port) as stream:
        yield stream


@asynccontextmanager
async def client_of(port: int, uid: int) -> AsyncIterator[anyio.abc.SocketStream]:
    """Connect to the proxy as another user. Takes root."""
    with acting_as(uid):
        connection = socket.socket()
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        stream = await anyio.abc.SocketStream.from_socket(connection)
    except BaseException:
        connection.close()
        raise
    async with stream:
        yield stream


@asynccontextmanager
async def http_client(port: int) -> AsyncIterator[HttpClient]:
    """Connect to the proxy, for requests."""
    async with raw_client(port) as stream:
        yield HttpClient(stream)


async def read_all(stream: anyio.abc.SocketStream) -> bytes:
    """Return what comes until the connection ends, however it ends."""
    data = b""
    with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError), anyio.fail_after(SECONDS):
        while True:
            data += await stream.receive()
    return data


async def read_until(stream: anyio.abc.SocketStream, end: bytes) -> bytes:
    """Return what comes up to and with `end`."""
    data = b""
    with anyio.fail_after(SECONDS):
        while not data.endswith(end):
            data += await stream.receive(1)
    return data


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until something becomes true."""
    with anyio.fail_after(SECONDS):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.005)


# WebSocket

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def connect_message(auth: Mapping[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    """Return a connect request as OpenClaw's CLI sends it."""
    everything: dict[str, Any] = {
        "minProtocol": 4,
        "maxProtocol": 4,
        "client": {"id": "cli", "version": "2026.9.6", "platform": "linux", "mode": "cli"},
        "caps": [],
        "role": "operator",
        "scopes": ["operator.read", "operator.write"],
        **params,
    }
    if auth is not None:
        everything["auth"] = dict(auth)
    return {"type": "req", "id": "1:one", "method": "connect", "params": everything}


async def next_json(client: ClientConnection) -> dict[str, Any]:
    """Return the next message."""
    with anyio.fail_after(SECONDS):
        message: dict[str, Any] = json.loads(await client.recv())
    return message


async def messages_until_close(client: ClientConnection) -> list[dict[str, Any]]:
    """Return what still comes until the connection is closed."""
    messages = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            messages.append(await next_json(client))
    return messages


async def login(client: ClientConnection, /, auth: Mapping[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    """Wait for the challenge, send a connect request, and return the answer to it."""
    challenge = await next_json(client)
    assert challenge["event"] == "connect.challenge", challenge
    await client.send(json.dumps(connect_message(auth, **params)))
    return await next_json(client)


# Other users, other processes


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Be another user for the time of the block; what is opened in it is that user's. Takes root."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def a_process() -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that does nothing, for the time of the block."""
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            yield process
        finally:
            process.kill()


def process_of(pid: int) -> Process:
    """Return how a running process is named in tokens."""
    descriptor = os.pidfd_open(pid)
    try:
        inode = pidfs_inode(descriptor)
    finally:
        os.close(descriptor)
    assert inode is not None, "this kernel has no pidfs"
    return Process(pid, inode)


class GatewayProcess:
    """The proxy as a process of its own, started by `manager` if there is one. A context manager: it is killed at the
    end.

    Its log goes to `directory/gateway.log`; `log` reads it.
    """

    def __init__(
        self, directory: Path, tables: Mapping[str, Any], *options: str, manager: TestManager | None = None
    ) -> None:
        directory.chmod(0o755)
        self.config = directory / "gateway.toml"
        self.config.write_text(to_toml(tables))
        self.config.chmod(0o600)
        self.port: int = tables["listen"]["port"]
        self._log = directory / "gateway.log"
        self._options = options
        self._manager = manager
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text()

    async def start(self) -> Self:
        """Start it and wait until it is ready."""
        command = [sys.executable, "-m", "gatepass_gateway", "--config", str(self.config), *self._options]
        times_before = self.log.count("ready") if self._log.exists() else 0
        handed_over: dict[str, Any] = {}
        if self._manager is not None:
            command, handed_over = [*WITH_OWN_PID, *command], self._manager.service(watchdog_seconds=30)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, stdout=log, **handed_over)  # noqa: ASYNC220
        limit = time.monotonic() + SECONDS
        while self.log.count("ready") == times_before:
            assert self._process.poll() is None, f"the proxy ended:\n{self.log}"
            assert time.monotonic() < limit, f"the proxy is not ready:\n{self.log}"
            await anyio.sleep(0.02)
        return self

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def wait(self) -> int:
        """Wait for its end and return the exit code."""
        assert self._process is not None
        process = self._process
        await eventually(lambda: process.poll() is not None)
        return process.returncode

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(SECONDS)


def to_toml(tables: Mapping[str, Any], path: str = "") -> str:
    """Return nested tables as TOML. Strings must not need escapes."""
    own, inner = [], []
    for key, value in tables.items():
        name = f"{path}.{json.dumps(key)}" if path else json.dumps(key)
        if isinstance(value, Mapping):
            inner.append(f"[{name}]\n{to_toml(value, name)}")
        else:
            own.append(f"{json.dumps(key)} = {json.dumps(value)}\n")
    return "".join(own + inner)
