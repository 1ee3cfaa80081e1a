"""The proxy as a whole: its parts are built here, in one place, and taken down in the reverse order."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

import anyio
import structlog
from anyio.abc import SocketStream, TaskGroup
from h11 import SERVER

from gatepass.daemon.logs import SeldomPerKey
from gatepass.errors import ConfigurationError
from gatepass_gateway.authenticator import Authenticator
from gatepass_gateway.config import Settings
from gatepass_gateway.gate import Gate
from gatepass_gateway.http_connection import serve_client
from gatepass_gateway.http_peer import BROKEN, HttpPeer
from gatepass_gateway.keys import BrokerKeys, JwksFileKeys, KeySource
from gatepass_gateway.refused import RefusedError
from gatepass_gateway.shares import Shares
from gatepass_gateway.sock_diag import Address, SockDiag
from gatepass_gateway.stopping import Stopping
from gatepass_gateway.upstream import Upstream

_log: structlog.stdlib.BoundLogger = structlog.get_logger("proxy")

_BACKLOG: Final = 1024
_DRAIN_SECONDS: Final = 5
"""How long requests may take to end once the proxy is told to stop."""

_FULL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_FULL_SECONDS: Final = 0.1
_FILES_PER_CONNECTION: Final = 3  # the client's, and up to two upstream
_FILES_BESIDES: Final = 64


async def run(settings: Settings, ready: Callable[[Settings], None]) -> None:
    """Serve until SIGTERM or SIGINT. Raise `ConfigurationError` if a port cannot be had."""
    with ExitStack() as parts:
        sock_diag = parts.enter_context(SockDiag())
        listeners = [parts.enter_context(_listener(address, sock_diag)) for address in settings.listen]
        stopping = Stopping()
        keys = _key_source(settings)
        proxy = _Proxy(settings, _gate(settings, keys, sock_diag, stopping))
        async with anyio.create_task_group() as clients:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(keys.run)
                for listener in listeners:
                    tasks.start_soon(proxy.accept_from, listener, clients)
                ready(settings)
                await _stop_signal()
                tasks.cancel_scope.cancel()
            stopping.begin()
            clients.cancel_scope.deadline = anyio.current_time() + _DRAIN_SECONDS


class _Proxy:
    """Takes connections: who is it, and is there room?"""

    def __init__(self, settings: Settings, gate: Gate) -> None:
        limits = settings.limits
        self._gate = gate
        self._no_room = SeldomPerKey("no_room")
        self._connections = Shares(
            per_uid=limits.connections_per_uid, in_all=min(limits.connections, _connections_possible())
        )

    async def accept_from(self, listener: socket.socket, clients: TaskGroup) -> None:
        """Take connections without end. A full file table or a client that is gone again ends nothing."""
        while True:
            await anyio.wait_readable(listener)
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                _log.warning("accept_failed", reason=error.strerror)
                if error.errno in _FULL:
                    await anyio.sleep(_FULL_SECONDS)
                continue
            clients.start_soon(self._serve, connection)

    async def _serve(self, connection: socket.socket) -> None:
        """Serve one client. Its owner is asked for once, here: no connection exists further in without an answer."""
        uid = self._owner(connection)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = await SocketStream.from_socket(connection)
        except (OSError, ValueError):  # reset already: anyio calls what has no peer a wrong argument
            connection.close()
            return
        try:
            async with stream:
                await self._serve_stream(stream, uid)
        except BROKEN:
            return
        except Exception:  # noqa: BLE001
            # A fault of ours ends this connection, not everybody's.
            _log.exception("fault", uid=uid)

    async def _serve_stream(self, stream: SocketStream, uid: int | None) -> None:
        try:
            with self._connections.hold(uid, shared=uid in self._gate.authenticator.policy.reverse_proxy_uids):
                await serve_client(stream, uid, self._gate)
        except RefusedError as error:
            self._no_room.warn(uid, uid=uid)
            await HttpPeer(stream, SERVER).refuse(error, linger=False)

    def _owner(self, connection: socket.socket) -> int | None:
        try:
            client, here = connection.getpeername(), connection.getsockname()
        except OSError:  # gone again
            return None
        return self._gate.authenticator.owner(client[:2], here[:2])


def _gate(settings: Settings, keys: KeySource, sock_diag: SockDiag, stopping: Stopping) -> Gate:
    return Gate(
        authenticator=Authenticator(settings.audience, settings.policy, keys, sock_diag),
        upstream=Upstream(settings.upstream, sock_diag),
        shares=Shares(per_uid=settings.limits.waiting_per_uid, in_all=settings.limits.waiting),
        stopping=stopping,
        deadlines=settings.deadlines,
        client_address=settings.client_address,
        extra_headers=settings.extra_headers,
        fixed_headers=settings.fixed_headers,
        device_login_uids=settings.device_login_uids,
    )


def _key_source(settings: Settings) -> KeySource:
    if settings.jwks_file is not None:
        return JwksFileKeys(settings.jwks_file, settings.issuer)
    return BrokerKeys(settings.broker_socket)


def _listener(address: Address, sock_diag: SockDiag) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        cure = (
            "; if OpenClaw holds it, give it another with 'openclaw gateway run --port'"
            if error.errno == errno.EADDRINUSE
            else ""
        )
        raise ConfigurationError(
            f"{address[0]} port {address[1]} cannot be listened on: {error.strerror}{cure}", where="listen"
        ) from None
    _refuse_strangers(listener, address, sock_diag)
    return listener


def _refuse_strangers(listener: socket.socket, address: Address, sock_diag: SockDiag) -> None:
    """Refuse a port to which another user's sockets are bound: they could take connections meant for the listener.

    None can be bound there from now on; what is looked for are sockets that were there before.
    """
    strangers, port = sock_diag.strangers_on(address, os.geteuid()), address[1]
    if strangers:
        listener.close()
        raise ConfigurationError(
            f"uid {', '.join(map(str, sorted(strangers)))} holds sockets on port {port} and could take connections "
            f"that are meant for the proxy; stop those processes ('ss -tanp sport = :{port}' shows them)",
            where="listen",
        )


def _connections_possible() -> int:
    """Return how many connections the file table allows, after asking for as many files as are allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return max(1, (soft - _FILES_BESIDES) // _FILES_PER_CONNECTION)


async def _stop_signal() -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for received in signals:
            if received == signal.SIGHUP:
                _log.warning("a changed configuration takes a restart")
                continue
            _log.info("stopping", signal=received.name)
            return
