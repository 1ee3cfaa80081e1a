"""The blocking client. Standard library and msgpack only."""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final

from gatepass.connection import connect
from gatepass.errors import DeniedError, ErrorCode, GatepassError, TokenError, TryLaterError
from gatepass.exchange import READ_SIZE, Exchange
from gatepass.frames import Message
from gatepass.messages import (
    MAX_TEXT,
    ExplainRequest,
    IssuedToken,
    IssueRequest,
    LeftBehindRequest,
    LockRequest,
    Operation,
    RevokeRequest,
    SessionsRequest,
    StatusRequest,
    UnlockRequest,
    VerifyRequest,
    WhoamiRequest,
    issued_token,
)
from gatepass.paths import default_socket
from gatepass.patience import Patience
from gatepass.unreachable import delay_after

if TYPE_CHECKING:
    from collections.abc import Collection
    from socket import socket as Socket  # noqa: N812 - `socket` is the name of a parameter here

    from gatepass.explanation import Explanation
    from gatepass.oversight import Enforced, LeftBehindList, SessionList
    from gatepass.replies import Status, VerifiedToken, Whoami

DEFAULT_TIMEOUT: Final = 5.0
"""Seconds. A broker that is restarted is back within one."""

ANSWERS: Final = (DeniedError, TryLaterError, TokenError)
"""Errors that the broker answered with: the connection is in step after them."""


class Client:
    """Asks the broker, on one connection that is made when it is first needed and made again when it is lost.

    `socket` is the absolute path of the broker's socket (default: `gatepass.paths.default_socket`), `timeout` the
    seconds that one call may take, with everything that is tried again: a broker that restarts is waited for.

    Every method raises `DeniedError` (asking again is no use), `TryLaterError` (it may be), `UnreachableError` (no
    broker, or not the right one), `ConfigurationError` (a path that can be no socket) or `ProtocolError`.

    May be shared by threads; their calls take turns. A process that was forked, or that changed its user, gets a new
    connection, because the kernel tells the broker who connected and not who is writing.
    """

    def __init__(self, socket: str | None = None, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.socket = default_socket() if socket is None else socket
        self.timeout = timeout
        self._connection: tuple[Socket, Exchange] | None = None
        self._reset()

    def issue(
        self,
        audience: str | None = None,
        scope: str | None = None,
        ttl: int | None = None,
        binding: str | None = None,
    ) -> IssuedToken:
        """Return a new token. What is None is chosen by the broker from what this caller is granted.

        `scope` is space-separated ("" for none at all), `ttl` the wanted life in seconds, `binding` a
        `gatepass.messages.Binding` (`uid`, `unit` or `process`) to have it bound more closely than the grant demands.
        A request beyond the grant is denied, never trimmed.
        """
        return issued_token(self._call(IssueRequest(audience, scope, ttl, binding)))

    def whoami(self) -> Whoami:
        """Return whom the broker sees in this process, and what it would grant."""
        from gatepass.replies import whoami_reply  # noqa: PLC0415 - who only wants a token does not load it

        return whoami_reply(self._call(WhoamiRequest()))

    def status(self) -> Status:
        """Return how the broker is."""
        from gatepass.replies import status_reply  # noqa: PLC0415 - as above

        return status_reply(self._call(StatusRequest()))

    def verify(self, token: str, audience: str | None = None) -> VerifiedToken:
        """Return what `token` says, if it would be accepted from this process. Raise `TokenError` if not.

        `audience` is whom the token should be for (default: what this caller is granted first).
        """
        from gatepass.replies import verified_token  # noqa: PLC0415 - as above

        return verified_token(self._call(verify_request(token, audience)))

    def explain(  # noqa: PLR0913 - the members of the request
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
        """Return how the same request by `issue` would be decided, and why; about this process unless told.

        For administrators also about others: about the process `pid`, or about a user of `uid`, `gid` and supplementary
        `groups`, wherever it runs.
        """
        from gatepass.explanation import explanation_reply  # noqa: PLC0415 - as above

        return explanation_reply(self._call(explain_request(audience, scope, ttl, binding, pid, uid, gid, groups)))

    def sessions(self) -> SessionList:
        """Return the sessions that are open at the gateways connected to the broker. For administrators."""
        from gatepass.oversight import sessions_reply  # noqa: PLC0415 - as above

        return sessions_reply(self._call(SessionsRequest()))

    def left_behind(self) -> LeftBehindList:
        """Return what sessions have left behind, the newest first. For administrators."""
        from gatepass.oversight import left_behind_reply  # noqa: PLC0415 - as above

        return left_behind_reply(self._call(LeftBehindRequest()))

    def revoke(self, by: str, value: str = "") -> Enforced:
        """Cut off what was issued so far, live sessions included, and return how far that got. For administrators.

        `by` is a `gatepass.revocations.Cut`: `jti`, `uid`, `unit`, `identity` or `all`; `value` is which one. Returns
        when every connected gateway has acted, or after two seconds. Whoever has a rule can ask for a new token.
        """
        return self._enforce(RevokeRequest(by, value))

    def lock(self) -> Enforced:
        """Have nothing issued and nobody let in until `unlock`, and end live sessions. For administrators."""
        return self._enforce(LockRequest())

    def unlock(self) -> Enforced:
        """End the lock. For administrators."""
        return self._enforce(UnlockRequest())

    def close(self) -> None:
        """Close the connection. The client can be used again and then makes a new one."""
        self._adopt()
        with self._lock:
            self._drop()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        """The place of the broker."""
        return f"Client({self.socket!r})"

    def _enforce(self, operation: Operation) -> Enforced:
        from gatepass.oversight import enforced_reply  # noqa: PLC0415 - as above

        return enforced_reply(self._call(operation))

    def _call(self, operation: Operation) -> Message:
        self._adopt()
        patience = Patience(self.timeout)
        while True:
            try:
                return self._attempt(operation, patience)
            except (OSError, GatepassError) as error:
                delay = delay_after(error, patience, self.socket)
            time.sleep(delay)

    def _attempt(self, operation: Operation, patience: Patience) -> Message:
        """Take a turn, and give the connection up unless the reply was read and does not ask for another one."""
        if not self._lock.acquire(timeout=patience.for_attempt()):
            raise TimeoutError
        try:
            return self._exchange(operation, patience)
        except ANSWERS as error:
            if error.code is ErrorCode.CONNECT_AGAIN:
                self._drop()
            raise
        except BaseException:
            self._drop()
            raise
        finally:
            self._lock.release()

    def _exchange(self, operation: Operation, patience: Patience) -> Message:
        if self._connection is None:
            self._connection = connect(self.socket), Exchange()
        connection, exchange = self._connection
        connection.settimeout(patience.remaining())
        connection.sendall(exchange.request(operation))
        result = None
        while result is None:
            connection.settimeout(patience.remaining())
            result = exchange.receive(connection.recv(READ_SIZE))
        return result

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection[0].close()

    def _adopt(self) -> None:
        """Start afresh in a process that is no longer the one which connected.

        Of a forked process only the thread that called `fork` lives on, so nothing else can be in the middle of this.
        """
        if self._identity != process_identity():
            self._reset()

    def _reset(self) -> None:
        self._drop()
        self._lock = threading.Lock()
        self._identity = process_identity()


def process_identity() -> tuple[int, int, int]:
    """Return what the kernel tells the broker about whoever connects now: pid, uid, gid."""
    return os.getpid(), os.geteuid(), os.getegid()


def explain_request(  # noqa: PLR0913, PLR0917 - the members of the request
    audience: str | None,
    scope: str | None,
    ttl: int | None,
    binding: str | None,
    pid: int | None,
    uid: int | None,
    gid: int | None,
    groups: Collection[int] | None,
) -> ExplainRequest:
    """Return the request to explain how a request for a token would be decided."""
    whose = None if groups is None else tuple(groups)
    return ExplainRequest(audience, scope, ttl, binding, pid, uid, gid, whose)


def verify_request(token: str, audience: str | None) -> VerifyRequest:
    """Return the request to check `token`. Text that no request can carry is no token either: `TokenError`."""
    if len(token) > MAX_TEXT or not token.isprintable():
        raise TokenError(ErrorCode.TOKEN_MALFORMED, "the token is malformed: it is too long, or has control characters")
    return VerifyRequest(token, audience)
