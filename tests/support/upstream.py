"""A gateway that behaves as OpenClaw does in trusted-proxy mode, as far as it matters to a proxy in front of it.

It believes an identity header only on connections from one loopback address, and only beside an `X-Forwarded-For`
that is not loopback. HTTP is read by h11 and WebSockets by `websockets`: neither shares code with the proxy's own
frames. Everything that reaches it is recorded, down to the bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
import h11
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Upgrade
from websockets.protocol import State
from websockets.server import ServerProtocol

USER_HEADER = "x-unguessable-user"
SCOPES_HEADER = "x-openclaw-scopes"
IDENTITY_SOURCE = "127.7.7.7"
USER = "derek@example.com"
OPERATOR_SCOPES = ("operator.admin", "operator.read", "operator.write")
PRE_LOGIN_BYTES = 65_536
UNAUTHENTICATED_LIMIT = 32

_GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError, h11.RemoteProtocolError)


@dataclass
class Received:
    """One HTTP request, upgrades included."""

    source: str
    method: str
    target: str
    headers: list[tuple[str, str]]
    """In the spelling in which they came."""
    body: bytes = b""

    def values(self, name: str) -> list[str]:
        """Return the values of all fields of this name, however it is written."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass
class Session:
    """One WebSocket after its upgrade."""

    request: Received
    identity: str | None
    messages: list[str | bytes] = field(default_factory=list)
    """What the client sent, whole messages."""
    pings: list[bytes] = field(default_factory=list)
    logged_in: bool = False
    scopes: tuple[str, ...] = ()
    close_code: int | None = None
    """Of the close frame that came, if one did."""
    close_reason: str = ""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    protocol: ServerProtocol | None = None
    stream: anyio.abc.SocketStream | None = None

    async def send_raw(self, data: bytes) -> None:
        """Send any bytes, past the protocol."""
        assert self.stream is not None
        await self.stream.send(data)


@dataclass
class FakeGateway:
    """What was received, and what a test can change."""

    port: int
    listener: socket.socket
    user_header: str = USER_HEADER
    identity_scopes: tuple[str, ...] = OPERATOR_SCOPES
    allow_users: tuple[str, ...] = (USER,)
    password: str = "gatepass-none.gateway.AAAAAAAAAAAAAAAAAAAAAA"
    """The gateway's own resolved secret, which logs in local clients where it gets here."""
    websocket: str = "normal"
    """How WebSockets behave: see `_websocket`."""
    makes: dict[Any, dict[str, Any]] = field(default_factory=dict)
    """Payloads of the answers to requests by their methods, each for one; others are sent back as they came."""
    requests: list[Received] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    raw: dict[int, bytearray] = field(default_factory=dict)
    """All bytes by connection, in the order of the connections."""
    connected: int = 0
    waiting: int = 0
    """WebSockets without a login."""
    most_waiting: int = 0
    hangups: int = 0
    """Requests whose client was gone before the answer was."""
    step: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    """`/events` sends one piece for each release."""

    @property
    def bytes_received(self) -> bytes:
        """Everything that came over all connections."""
        return b"".join(self.raw.values())

    def identity_of(self, request: Received) -> str | None:
        """Return the user that a request is believed to come from."""
        users = request.values(self.user_header)
        forwarded = request.values("x-forwarded-for")
        if request.source != IDENTITY_SOURCE or not users or not forwarded:
            return None
        if ipaddress.ip_address(forwarded[0].split(",")[0].strip()).is_loopback:
            return None
        user = ", ".join(users).strip()
        return user if user in self.allow_users else None

    def scopes_of(self, request: Received) -> tuple[str, ...]:
        """Return the scopes of a request with an identity: a missing header gives everything."""
        values = request.values(SCOPES_HEADER)
        if not values:
            return self.identity_scopes
        named = {scope.strip() for value in values for scope in value.split(",")}
        return tuple(scope for scope in self.identity_scopes if scope in named)

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        """Serve one connection."""
        self.connected += 1
        raw = self.raw[self.connected] = bytearray()
        source = stream.extra(anyio.abc.SocketAttribute.remote_address)[0]
        async with stream:
            with contextlib.suppress(*_GONE):
                while b"\r\n\r\n" not in raw:
                    raw += await stream.receive()
                if b"\r\nupgrade: websocket\r\n" in raw.lower():
                    await self._upgrade(stream, str(source), raw)
                else:
                    await self._http(stream, str(source), raw)

    # HTTP

    async def _http(self, stream: anyio.abc.SocketStream, source: str, raw: bytearray) -> None:
        exchange = _Exchange(stream, raw)
        while True:
            event = await exchange.next_event()
            if not isinstance(event, h11.Request):
                return
            request = Received(
                source,
                event.method.decode(),
                event.target.decode(),
                [(name.decode(), value.decode("latin-1")) for name, value in event.headers.raw_items()],
            )
            self.requests.append(request)
            await self._answer(exchange, request)
            if exchange.state.our_state is not h11.DONE or exchange.state.their_state is not h11.DONE:
                return
            exchange.state.start_next_cycle()

    async def _answer(self, exchange: _Exchange, request: Received) -> None:  # noqa: C901, PLR0912
        if request.source != IDENTITY_SOURCE and any(
            name.lower() in ("forwarded", "x-real-ip") or name.lower().startswith("x-forwarded-")
            for name, _ in request.headers
        ):
            await exchange.respond(403, {"error": {"type": "proxy_attribution_required"}})
            return
        path = request.target.partition("?")[0]
        if path == "/early":
            await exchange.respond(413, {"error": "too large"})
            return
        if path == "/duplex":
            await exchange.start(200)
            while isinstance(event := await exchange.next_event(), h11.Data):
                request.body += bytes(event.data)
                await exchange.send(h11.Data(data=bytes(event.data)))
            await exchange.send(h11.EndOfMessage())
            return
        while isinstance(event := await exchange.next_event(), h11.Data):
            request.body += bytes(event.data)
        if path == "/events":
            await self._events(exchange)
        elif path == "/silent":
            await self._wait_for_hangup(exchange)
        elif path == "/slam":
            return
        elif path == "/garbage":
            await exchange.stream.send(b"\x16\x03\x01 garbage\r\n\r\n")
        elif path == "/cut":
            await exchange.stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nten bytes.")
        elif path == "/cut-chunked":
            await exchange.stream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nten bytes.\r\n")
        elif path == "/both-lengths":
            await exchange.stream.send(
                b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"a\r\nten bytes.\r\n0\r\n\r\n"
            )
        elif path == "/close-delimited":
            await exchange.stream.send(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")
        elif path == "/hints":
            await exchange.stream.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
            await exchange.respond(200, {})
        elif path.startswith("/status/"):
            await exchange.respond(int(path.removeprefix("/status/")), None)
        else:
            await exchange.respond(200, self._seen(request))

    def _seen(self, request: Received) -> dict[str, Any]:
        identity = self.identity_of(request)
        return {
            "identity": identity,
            "scopes": None if identity is None else self.scopes_of(request),
            "source": request.source,
            "body": request.body.decode("latin-1"),
        }

    async def _events(self, exchange: _Exchange) -> None:
        await exchange.start(200, ("content-type", "text/event-stream"))
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                await self._wait_for_hangup(exchange)
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            for number in range(3):
                await self.step.acquire()
                await exchange.send(h11.Data(data=f"data: {number}\n\n".encode()))
            await exchange.send(h11.EndOfMessage())
            tasks.cancel_scope.cancel()

    async def _wait_for_hangup(self, exchange: _Exchange) -> None:
        with contextlib.suppress(*_GONE):
            while True:
                await exchange.stream.receive()
        self.hangups += 1

    # WebSocket

    async def _upgrade(self, stream: anyio.abc.SocketStream, source: str, raw: bytearray) -> None:
        protocol = ServerProtocol(max_size=PRE_LOGIN_BYTES)
        protocol.receive_data(bytes(raw))
        events = protocol.events_received()
        if not events or not isinstance(events[0], Upgrade):
            return
        upgrade = events[0]
        headers = [(name, value) for name, value in upgrade.headers.raw_items()]
        request = Received(source, "GET", upgrade.path, headers)
        self.requests.append(request)
        if self.websocket == "hang":
            await anyio.sleep_forever()
        if self.websocket == "slam":
            return
        carries_identity = bool(request.values(self.user_header))
        identity = self.identity_of(request)
        refused = self.websocket == "refuse" or (self.websocket == "refuse-identity" and carries_identity)
        if refused or self.waiting >= UNAUTHENTICATED_LIMIT:
            body = b'{"error":{"type":"refused"}}'
            await stream.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            return
        protocol.send_response(protocol.accept(upgrade))
        session = Session(request, identity, protocol=protocol, stream=stream)
        self.sessions.append(session)
        self.waiting += 1
        self.most_waiting = max(self.waiting, self.most_waiting)
        try:
            await self._websocket(session, stream, raw)
        finally:
            if not session.logged_in:
                self.waiting -= 1
            if protocol.close_rcvd is not None:
                session.close_code, session.close_reason = protocol.close_rcvd.code, protocol.close_rcvd.reason
            session.ended.set()

    async def _websocket(self, session: Session, stream: anyio.abc.SocketStream, raw: bytearray) -> None:  # noqa: C901
        """Serve a WebSocket, with one fault if `self.websocket` names one that fits its stage."""
        protocol = session.protocol
        assert protocol is not None
        mode = self.websocket if session.identity or self.websocket.startswith("all:") else "normal"
        mode = mode.removeprefix("all:")
        if mode == "garbage-first":
            protocol.send_text(b"hello")
        elif mode == "bad-frame-first":
            await _flush(protocol, stream)
            await stream.send(b"\xf3\x7f" * 20)
        elif mode != "no-challenge":
            protocol.send_text(
                _json({"type": "event", "event": "connect.challenge", "payload": {"nonce": "n", "ts": 1}})
            )
        await _flush(protocol, stream)
        message = bytearray()
        opcode = Opcode.TEXT
        while not protocol.close_expected() or protocol.close_rcvd is None:
            data = await stream.receive()
            raw += data
            protocol.receive_data(data)
            for frame in protocol.events_received():
                assert isinstance(frame, Frame)
                if frame.opcode is Opcode.PING:
                    session.pings.append(bytes(frame.data))
                if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                    continue
                if frame.opcode is not Opcode.CONT:
                    message, opcode = bytearray(), frame.opcode
                message += frame.data
                if not frame.fin:
                    continue
                whole: str | bytes = message.decode() if opcode is Opcode.TEXT else bytes(message)
                session.messages.append(whole)
                if session.logged_in:
                    await self._converse(protocol, stream, whole)
                elif not await self._login(session, protocol, stream, mode):
                    return
            await _flush(protocol, stream)

    async def _login(  # noqa: PLR0911
        self, session: Session, protocol: ServerProtocol, stream: anyio.abc.SocketStream, mode: str
    ) -> bool:
        if mode == "silent-login":
            return True
        if mode == "slam-login":
            return False
        if mode == "close-login":
            protocol.send_close(1008, "invalid-handshake")
            await _flush(protocol, stream)
            return True
        if mode == "bad-frame-login":
            await stream.send(b"\xf3\x7f" * 20)
            await stream.receive()
            return False
        message = session.messages[-1]
        frame = _loaded(message)
        params = frame.get("params")
        if frame.get("type") != "req" or frame.get("method") != "connect" or not isinstance(params, dict):
            protocol.send_close(1008, "invalid request frame")
            await _flush(protocol, stream)
            return True
        error = self._login_error(session, params)
        if error is not None:
            code, text = error
            protocol.send_text(_answer(frame["id"], ok=False, error={"code": code, "message": text}))
            protocol.send_close(1008, text)
            await _flush(protocol, stream)
            return True
        session.logged_in = True
        self.waiting -= 1
        session.scopes = self.scopes_of(session.request) if session.identity else ()
        protocol.max_message_size = None
        payload = {"type": "hello-ok", "auth": {"user": session.identity, "scopes": session.scopes}}
        protocol.send_text(_answer(frame["id"], ok=True, payload=payload))
        await _flush(protocol, stream)
        return True

    def _login_error(self, session: Session, params: Mapping[str, Any]) -> tuple[str, str] | None:
        """Return why a connect request is refused, or None."""
        auth, role = params.get("auth") or {}, params.get("role", "operator")
        if role not in ("operator", "node"):
            return "INVALID_REQUEST", "invalid role"
        if session.identity is not None:
            return None
        if auth.get("password") == self.password and session.request.source != IDENTITY_SOURCE:
            return None
        if "device" in params and (auth.get("deviceToken") or auth.get("token") or role == "node"):
            return None
        if not auth:
            return "NOT_PAIRED", "device identity required"
        return "INVALID_REQUEST", "unauthorized"

    async def _converse(self, protocol: ServerProtocol, stream: anyio.abc.SocketStream, message: str | bytes) -> None:
        """Send back whatever comes; some texts ask for more."""
        if protocol.state is not State.OPEN:
            return
        if message == "close please":
            protocol.send_close(4001, "gateway policy changed")
        elif message == "ping please":
            protocol.send_ping(b"from the gateway")
        elif message == "slam please":
            await anyio.aclose_forcefully(stream)
        elif message == "half please":
            await stream.send(b"\x81\x7e\x03\xe8" + b"x" * 500)
        elif payload := self.makes.pop(_loaded(message).get("method"), None):
            protocol.send_text(_answer(_loaded(message)["id"], ok=True, payload=payload))
        elif isinstance(message, bytes):
            protocol.send_binary(message)
        else:
            protocol.send_text(message.encode())


class _Exchange:
    """h11's server side on a stream."""

    def __init__(self, stream: anyio.abc.SocketStream, raw: bytearray) -> None:
        self.stream = stream
        self.state = h11.Connection(h11.SERVER)
        self.state.receive_data(bytes(raw))
        self._raw = raw

    async def next_event(self) -> Any:
        while (event := self.state.next_event()) is h11.NEED_DATA:
            if self.state.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            try:
                data = await self.stream.receive()
            except anyio.EndOfStream:
                data = b""
            self._raw += data
            self.state.receive_data(data)
        return event

    async def send(self, event: h11.Event) -> None:
        data = self.state.send(event)
        if data:
            await self.stream.send(data)

    async def start(self, status: int, *headers: tuple[str, str]) -> None:
        await self.send(h11.Response(status_code=status, headers=list(headers)))

    async def respond(self, status: int, body: dict[str, Any] | None) -> None:
        data = b"" if body is None else _json(body)
        length = () if body is None else (("content-length", str(len(data))),)
        await self.start(status, ("content-type", "application/json"), ("x-answered-by", "fake"), *length)
        if data and self.state.their_state is not h11.ERROR and not self._answers_head():
            await self.send(h11.Data(data=data))
        await self.send(h11.EndOfMessage())

    def _answers_head(self) -> bool:
        return self._raw.startswith(b"HEAD ")


@asynccontextmanager
async def running_upstream(**changes: Any) -> AsyncIterator[FakeGateway]:
    """Run a gateway on a free port of 127.0.0.1 for the time of the block. `listener=` brings a socket of its own."""
    listener: socket.socket | None = changes.pop("listener", None)
    if listener is None:
        listener = socket.create_server(("127.0.0.1", changes.pop("port", 0)))
    listener.setblocking(False)
    gateway = FakeGateway(listener.getsockname()[1], listener, **changes)
    with listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_accept, listener, gateway, tasks)
            try:
                yield gateway
            finally:
                tasks.cancel_scope.cancel()


async def _accept(listener: socket.socket, gateway: FakeGateway, tasks: anyio.abc.TaskGroup) -> None:
    while True:
        try:
            await anyio.wait_readable(listener)
            connection, _ = listener.accept()
        except (ValueError, OSError, anyio.ClosedResourceError):  # a test has closed it
            return
        try:
            stream = await anyio.abc.SocketStream.from_socket(connection)
        except ValueError:  # reset before it was taken
            connection.close()
            continue
        tasks.start_soon(gateway.serve, stream)


async def _flush(protocol: ServerProtocol, stream: anyio.abc.SocketStream) -> None:
    for data in protocol.data_to_send():
        if data:
            await stream.send(data)
        else:
            await stream.send_eof()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _answer(request_id: str, *, ok: bool, **content: Any) -> bytes:
    return _json({"type": "res", "id": request_id, "ok": ok, **content})


def _loaded(message: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(message, parse_int=float)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
