"""The proxy as a whole: its parts are built here, in one place, and taken down in the reverse order."""

from __future__ import annotations

import errno
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio.abc import SocketStream, TaskGroup
from h11 import SERVER

from gatepass.clock import Moment, now
from gatepass.daemon.logs import SeldomPerKey
from gatepass.daemon.pulse import Queue, keep_manager_informed, tell
from gatepass.daemon.safe_paths import make_directory
from gatepass.daemon.systemd import Inherited, Notifier
from gatepass_gateway.authenticator import Authenticator
from gatepass_gateway.clients import Clients
from gatepass_gateway.config import Settings
from gatepass_gateway.earlier_logins import EarlierLogins
from gatepass_gateway.followed_broker import FollowedBroker
from gatepass_gateway.gate import Gate
from gatepass_gateway.http_connection import serve_client
from gatepass_gateway.http_peer import BROKEN, HttpPeer
from gatepass_gateway.keys import JwksFileKeys, TrustSource
from gatepass_gateway.listeners import listeners
from gatepass_gateway.lookout import Lookout
from gatepass_gateway.pulse import Pulse
from gatepass_gateway.refused import RefusedError
from gatepass_gateway.sessions import Sessions
from gatepass_gateway.shares import Shares
from gatepass_gateway.sock_diag import SockDiag
from gatepass_gateway.stopping import Stopping
from gatepass_gateway.trusted_proxy import Client
from gatepass_gateway.upstream import Upstream

_log: structlog.stdlib.BoundLogger = structlog.get_logger("proxy")

_NO_KEYS: Final = "no key known yet: no token counts"

_DRAIN_SECONDS: Final = 5
"""How long requests may take to end once the proxy is told to stop."""

_FULL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_FULL_SECONDS: Final = 0.1
_FILES_PER_CONNECTION: Final = 3  # the client's, and up to two upstream
_FILES_BESIDES: Final = 64


async def run(
    settings: Settings,
    ready: Callable[[Settings], None],
    inherited: Sequence[Inherited] = (),
    notifier: Notifier | None = None,
    clock: Callable[[], Moment] = now,
) -> None:
    """Serve until SIGTERM or SIGINT, on the sockets in `inherited` if there are any.

    `ready` is called, and the service manager behind `notifier` told, once connections are taken. Raise
    `ConfigurationError` if a port cannot be had, or the directory for state.
    """
    notifier = notifier or Notifier(None)
    with ExitStack() as parts:
        sock_diag = parts.enter_context(SockDiag())
        listening = listeners(settings.listen, inherited, sock_diag, parts)
        sessions = Sessions(clock)
        logins = EarlierLogins(_logins_file(settings))
        source = _source(settings, sessions, clock)
        authenticator = Authenticator(settings.audience, settings.policy, source, logins, clock=clock)
        gate = _gate(settings, authenticator, sessions, sock_diag)
        clients_by = partial(
            Clients, reverse_proxies=settings.reverse_proxies, redirected_port=settings.redirected_port
        )
        # A thread asks, too, with a netlink socket of its own.
        lookout = Lookout(clients_by(sock_diag), clients_by(parts.enter_context(SockDiag())))
        proxy = _Proxy(settings, gate, lookout)
        async with anyio.create_task_group() as clients:
            async with anyio.create_task_group() as tasks:
                for part in (sessions, logins, source):
                    tasks.start_soon(part.run)
                queues = [Queue(listener) for listener in listening]
                for listener, queue in zip(listening, queues, strict=True):
                    tasks.start_soon(proxy.accept_from, listener, queue, clients)
                await _tell(notifier, proxy, Pulse(settings.listen[0], sock_diag, queues), tasks)
                ready(settings)
                await _stop_signal()
                tasks.cancel_scope.cancel()
            notifier.stopping()
            gate.stopping.begin()
            clients.cancel_scope.deadline = anyio.current_time() + _DRAIN_SECONDS


async def _tell(notifier: Notifier, proxy: _Proxy, pulse: Pulse, tasks: TaskGroup) -> None:
    """Tell the service manager that the proxy serves, and from now on how it is."""
    await tell(notifier, notifier.ready, proxy.status)
    tasks.start_soon(keep_manager_informed, notifier, lambda: proxy.status, pulse.answers, pulse.queues)


class _Proxy:
    """Takes connections: who is it, and is there room?"""

    def __init__(self, settings: Settings, gate: Gate, lookout: Lookout) -> None:
        limits = settings.limits
        self._gate = gate
        self._lookout = lookout
        self._no_room = SeldomPerKey("no_room")
        in_all = min(limits.connections, _connections_possible())
        # A user's part stays the same: few files must not be one user's.
        per_uid = max(1, limits.connections_per_uid * in_all // limits.connections)
        self._connections = Shares(per_uid=per_uid, in_all=in_all)

    @property
    def status(self) -> str:
        """How it is, in one line."""
        source = self._gate.authenticator.source
        trust = source.current
        known = f"keys of {trust.keys.issuer or 'the broker'} known" if trust.keys.table else _NO_KEYS
        parts = [f"connections: {self._connections.held}, sessions: {self._gate.sessions.open}", known]
        if trust.standing.locked:
            parts.append("locked: nobody logs in")
        if source.complaint:
            parts.append(source.complaint)
        return "; ".join(parts)

    async def accept_from(self, listener: socket.socket, queue: Queue, clients: TaskGroup) -> None:
        """Take connections without end. A full file table or a client that is gone again ends nothing."""
        while True:
            await anyio.wait_readable(listener)
            queue.taken += 1  # or tried: what the kernel refuses is no fault of the serving
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
        """Serve one client. Who it is is asked once, here: no connection exists further in without an answer.

        A user who holds all places is refused before the kernel is asked at length.
        """
        seems, refusal = self._lookout.first_sight(connection), None
        with ExitStack() as held:
            try:
                held.enter_context(self._connections.hold(seems, shared=seems.is_reverse_proxy))
            except RefusedError as error:
                refusal = error
            client = seems if refusal else await self._lookout.who(connection, seems)
            if stream := await _stream(connection):
                await self._serve_until_broken(stream, client, refusal)

    async def _serve_until_broken(self, stream: SocketStream, client: Client, refusal: RefusedError | None) -> None:
        try:
            async with stream:
                await self._serve_stream(stream, client, refusal)
        except BROKEN:
            return
        except Exception:  # noqa: BLE001
            # A fault of ours ends this connection, not everybody's.
            _log.exception("fault", uid=client.uid)

    async def _serve_stream(self, stream: SocketStream, client: Client, refusal: RefusedError | None) -> None:
        if refusal is None:
            await serve_client(stream, client, self._gate)
            return
        self._no_room.warn(client.account, uid=client.uid)
        await HttpPeer(stream, SERVER).refuse(refusal, linger=False)


async def _stream(connection: socket.socket) -> SocketStream | None:
    """Return a stream of an accepted connection, None if that is gone."""
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return await SocketStream.from_socket(connection)
    except (OSError, ValueError):  # reset already: anyio calls what has no peer a wrong argument
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise


def _gate(settings: Settings, authenticator: Authenticator, sessions: Sessions, sock_diag: SockDiag) -> Gate:
    return Gate(
        authenticator=authenticator,
        upstream=Upstream(settings.upstream, sock_diag),
        shares=Shares(per_uid=settings.limits.waiting_per_uid, in_all=settings.limits.waiting),
        sessions=sessions,
        stopping=Stopping(),
        deadlines=settings.deadlines,
        client_address=settings.client_address,
        extra_headers=settings.extra_headers,
        fixed_headers=settings.fixed_headers,
        device_login_uids=settings.device_login_uids,
    )


def _source(settings: Settings, sessions: Sessions, clock: Callable[[], Moment]) -> TrustSource:
    if settings.jwks_file is not None:
        return JwksFileKeys(settings.jwks_file, settings.issuer)
    return FollowedBroker(
        settings.broker_socket,
        sessions,
        name=f"gatepass-gateway on {settings.listen[0][1]}",
        absence_seconds=settings.broker_absence_seconds,
        clock=clock,
    )


def _logins_file(settings: Settings) -> Path | None:
    """Return where logins are kept over a restart: two proxies of one user may share the directory."""
    if settings.state_dir is None:
        return None
    return make_directory(settings.state_dir) / f"gateway-logins-{settings.listen[0][1]}.json"


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
