"""The anyio twin of `Client` and `TokenSource`. Needs the extra `gatepass[async]`; nothing else here imports it."""

from __future__ import annotations

from socket import socket as Socket  # noqa: N812 - `socket` is the name of a parameter here
from types import TracebackType

import anyio
from anyio import to_thread

from gatepass.aio_source import AsyncTokenSource
from gatepass.client import ANSWERS, DEFAULT_TIMEOUT, process_identity, verify_request
from gatepass.connection import connect
from gatepass.errors import GatepassError
from gatepass.exchange import READ_SIZE, Exchange
from gatepass.frames import Message
from gatepass.messages import IssuedToken, IssueRequest, Operation, StatusRequest, WhoamiRequest, issued_token
from gatepass.paths import default_socket
from gatepass.patience import Patience
from gatepass.replies import Status, VerifiedToken, Whoami, status_reply, verified_token, whoami_reply
from gatepass.unreachable import delay_after

__all__ = ["AsyncClient", "AsyncTokenSource"]


class AsyncClient:
    """`gatepass.Client` for anyio: the same parameters, methods, results and errors.

    May be shared by the tasks of one event loop; their calls take turns. Cancelling a call gives its connection up.
    """

    def __init__(self, socket: str | None = None, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.socket = default_socket() if socket is None else socket
        self.timeout = timeout
        self._lock = anyio.Lock()
        self._connection: tuple[Socket, Exchange] | None = None
        self._identity = process_identity()

    async def issue(self, audience: str | None = None, scope: str | None = None, ttl: int | None = None) -> IssuedToken:
        """Return a new token; see `Client.issue`."""
        return issued_token(await self._call(IssueRequest(audience, scope, ttl)))

    async def whoami(self) -> Whoami:
        """Return whom the broker sees in this process; see `Client.whoami`."""
        return whoami_reply(await self._call(WhoamiRequest()))

    async def status(self) -> Status:
        """Return how the broker is."""
        return status_reply(await self._call(StatusRequest()))

    async def verify(self, token: str, audience: str | None = None) -> VerifiedToken:
        """Return what `token` says, if it would be accepted from this process; see `Client.verify`."""
        return verified_token(await self._call(verify_request(token, audience)))

    async def aclose(self) -> None:
        """Close the connection. The client can be used again and then makes a new one."""
        async with self._lock:
            self._drop()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._drop()  # without waiting: what is leaving may have been cancelled

    def __repr__(self) -> str:
        """The place of the broker."""
        return f"AsyncClient({self.socket!r})"

    async def _call(self, operation: Operation) -> Message:
        patience = Patience(self.timeout)
        while True:
            try:
                with anyio.fail_after(patience.remaining()):
                    async with self._lock:
                        return await self._attempt(operation)
            except (OSError, GatepassError) as error:
                delay = delay_after(error, patience, self.socket)
            await anyio.sleep(delay)

    async def _attempt(self, operation: Operation) -> Message:
        """Take a turn, and give the connection up unless the reply was read."""
        try:
            return await self._exchange(operation)
        except ANSWERS:
            raise
        except BaseException:
            self._drop()
            raise

    async def _exchange(self, operation: Operation) -> Message:
        connection, exchange = await self._connected()
        await _send(connection, exchange.request(operation))
        result = None
        while result is None:
            await anyio.wait_readable(connection)
            result = exchange.receive(connection.recv(READ_SIZE))
        return result

    async def _connected(self) -> tuple[Socket, Exchange]:
        if self._identity != process_identity():
            self._drop()
            self._identity = process_identity()
        if self._connection is None:
            # In a thread for its `lstat` calls, which may touch a disk; the loop goes on meanwhile.
            self._connection = await to_thread.run_sync(connect, self.socket), Exchange()
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection[0].close()


async def _send(connection: Socket, data: bytes) -> None:
    while data:
        try:
            data = data[connection.send(data) :]
        except BlockingIOError:
            await anyio.wait_writable(connection)
