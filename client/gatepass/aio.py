"""The anyio twin of `Client` and `TokenSource`. Needs the extra `gatepass[async]`; nothing else here imports it."""

from __future__ import annotations

from collections.abc import Collection
from socket import socket as Socket  # noqa: N812 - `socket` is the name of a parameter here
from types import TracebackType

import anyio
from anyio import to_thread

from gatepass.aio_source import AsyncTokenSource
from gatepass.client import ANSWERS, DEFAULT_TIMEOUT, explain_request, process_identity, verify_request
from gatepass.connection import connect
from gatepass.errors import ErrorCode, GatepassError
from gatepass.exchange import READ_SIZE, Exchange
from gatepass.explanation import Explanation, explanation_reply
from gatepass.frames import Message
from gatepass.messages import (
    IssuedToken,
    IssueRequest,
    LeftBehindRequest,
    LockRequest,
    Operation,
    RevokeRequest,
    SessionsRequest,
    StatusRequest,
    UnlockRequest,
    WhoamiRequest,
    issued_token,
)
from gatepass.oversight import (
    Enforced,
    LeftBehindList,
    SessionList,
    enforced_reply,
    left_behind_reply,
    sessions_reply,
)
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

    async def issue(
        self,
        audience: str | None = None,
        scope: str | None = None,
        ttl: int | None = None,
        binding: str | None = None,
    ) -> IssuedToken:
        """Return a new token; see `Client.issue`."""
        return issued_token(await self._call(IssueRequest(audience, scope, ttl, binding)))

    async def whoami(self) -> Whoami:
        """Return whom the broker sees in this process; see `Client.whoami`."""
        return whoami_reply(await self._call(WhoamiRequest()))

    async def status(self) -> Status:
        """Return how the broker is."""
        return status_reply(await self._call(StatusRequest()))

    async def verify(self, token: str, audience: str | None = None) -> VerifiedToken:
        """Return what `token` says, if it would be accepted from this process; see `Client.verify`."""
        return verified_token(await self._call(verify_request(token, audience)))

    async def explain(  # noqa: PLR0913 - the members of the request
        self,
        audience: str | None = None,
        scope: str | None = None,
        ttl: int | None = None,
        binding: str | None = None,
        *,
        pid: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        groups: Collection[int] | None = None,
    ) -> Explanation:
        """Return how the same request by `issue` would be decided, and why; see `Client.explain`."""
        request = explain_request(audience, scope, ttl, binding, pid, uid, gid, groups)
        return explanation_reply(await self._call(request))

    async def sessions(self) -> SessionList:
        """Return the sessions that are open at the gateways connected to the broker. For administrators."""
        return sessions_reply(await self._call(SessionsRequest()))

    async def left_behind(self) -> LeftBehindList:
        """Return what sessions have left behind, the newest first. For administrators."""
        return left_behind_reply(await self._call(LeftBehindRequest()))

    async def revoke(self, by: str, value: str = "") -> Enforced:
        """Cut off what was issued so far, live sessions included; see `Client.revoke`."""
        return enforced_reply(await self._call(RevokeRequest(by, value)))

    async def lock(self) -> Enforced:
        """Have nothing issued and nobody let in until `unlock`; see `Client.lock`."""
        return enforced_reply(await self._call(LockRequest()))

    async def unlock(self) -> Enforced:
        """End the lock. For administrators."""
        return enforced_reply(await self._call(UnlockRequest()))

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
                with anyio.fail_after(patience.for_attempt()):
                    async with self._lock:
                        return await self._attempt(operation)
            except (OSError, GatepassError) as error:
                delay = delay_after(error, patience, self.socket)
            await anyio.sleep(delay)

    async def _attempt(self, operation: Operation) -> Message:
        """Take a turn, and give the connection up unless the reply was read and does not ask for another one."""
        try:
            return await self._exchange(operation)
        except ANSWERS as error:
            if error.code is ErrorCode.CONNECT_AGAIN:
                self._drop()
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
