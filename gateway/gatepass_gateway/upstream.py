"""The gateway behind: two ways to reach it that cannot be confused, and the check that it is the gateway.

Connections that carry an identity come from a loopback address of their own, the only one that the gateway trusts
as a proxy. All others come from 127.0.0.1, and the gateway believes no identity in them whatever a client wrote.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from enum import Enum
from typing import Final, NamedTuple

import anyio
from anyio.abc import SocketStream

from gatepass.errors import ErrorCode, TryLaterError
from gatepass_gateway.sock_diag import Address, OwnedSocket, SockDiag

_CONNECT_SECONDS: Final = 5
_RETRY_SECONDS: Final = 2
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger


class Way(Enum):
    """How a connection reaches the gateway."""

    ANONYMOUS = "anonymous"
    IDENTITY = "identity"


class UpstreamSettings(NamedTuple):
    """Where the gateway is, and whose it must be."""

    address: Address
    uid: int
    """Owner of the gateway's listening socket. Any user may bind a port whose owner is down."""
    anonymous_source: str
    identity_source: str


class Upstream:
    """Opens connections to the gateway."""

    def __init__(self, settings: UpstreamSettings, sock_diag: SockDiag) -> None:
        self._settings = settings
        self._sock_diag = sock_diag

    @property
    def authority(self) -> bytes:
        """The gateway's own `Host`, for requests whose client's is not believed."""
        host, port = self._settings.address
        return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode("ascii")

    async def connect(self, way: Way) -> SocketStream:
        """Return a connection to the gateway. Raise `TryLaterError` if it is down or somebody else holds its port.

        The listener is looked up before and after: if it is the same socket both times (its cookie never comes back),
        no other listened there for a moment between. And whoever took the connection must be the gateway's user.
        """
        before = self._trusted_listener()
        connection = await self._open(self._source(way))
        try:
            self._check_unchanged(before)
            taken = self._is_taken_by_gateway(connection)
            if taken is None:
                connection = await self._open_again(connection)
                self._check_unchanged(before)
                taken = self._is_taken_by_gateway(connection)
            self._refuse_impostor(taken)
            return await SocketStream.from_socket(connection)
        except BaseException:
            connection.close()
            raise

    def _check_unchanged(self, before: OwnedSocket) -> None:
        if self._trusted_listener() != before:
            raise _unavailable("it restarted in this moment")

    def _is_taken_by_gateway(self, connection: socket.socket) -> bool | None:
        """Look who has the other end: a listener that stayed the same need not be who took the connection.

        None if nobody has it: the connection was led elsewhere.
        """
        settings = self._settings
        try:
            return self._sock_diag.taken_by(settings.uid, settings.address, connection.getsockname())
        except OSError as error:
            raise _unavailable(f"the kernel does not tell who took the connection ({error.strerror})") from None

    def _refuse_impostor(self, taken: bool | None) -> None:
        if not taken:
            raise TryLaterError(
                ErrorCode.UPSTREAM_IMPOSTOR,
                "a socket of another user took the connection to the gateway: nothing was sent to it; find who holds "
                f"port {self._settings.address[1]} besides the gateway ('ss -tanp'), and stop that process",
                retry_after=_RETRY_SECONDS,
            )

    def _trusted_listener(self) -> OwnedSocket:
        host, port = self._settings.address
        try:
            listener = self._sock_diag.listener(self._settings.address)
        except OSError as error:
            raise _unavailable(f"the kernel does not tell whose its port is ({error.strerror})") from None
        if listener is None:
            raise _unavailable(f"nothing listens on {host} port {port}")
        if listener.uid != self._settings.uid:
            raise TryLaterError(
                ErrorCode.UPSTREAM_IMPOSTOR,
                f"port {port} of the gateway is held by uid {listener.uid} instead of {self._settings.uid}: nothing "
                "was sent there; stop that process, or correct 'upstream.user' if the gateway runs as that user",
                retry_after=_RETRY_SECONDS,
            )
        return listener

    async def _open_again(self, connection: socket.socket) -> socket.socket:
        """Reset `connection` and open another from the same port.

        Where the redirect led others who had this port before, to ourselves, the kernel may still lead whoever has it:
        any user can leave that behind for each port. It is forgotten at the next connection after a reset from our end.
        """
        source = connection.getsockname()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        connection.close()
        return await self._open(source)

    def _source(self, way: Way) -> Address:
        settings = self._settings
        return settings.identity_source if way is Way.IDENTITY else settings.anonymous_source, 0

    async def _open(self, source: Address) -> socket.socket:
        """Connect a socket of our own: `connect_tcp` would look the source address up in a thread each time."""
        settings = self._settings
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            connection.bind(source)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with anyio.fail_after(_CONNECT_SECONDS):
                await _connect(connection, settings.address)
        except TimeoutError:
            connection.close()
            raise _unavailable("it takes no connections") from None
        except OSError as error:
            connection.close()
            raise _unavailable(error.strerror or str(error)) from None
        except BaseException:
            connection.close()
            raise
        return connection


async def _connect(connection: socket.socket, address: Address) -> None:
    code = connection.connect_ex(address)
    if code == errno.EINPROGRESS:
        await anyio.wait_writable(connection)
        code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _unavailable(why: str) -> TryLaterError:
    return TryLaterError(
        ErrorCode.UPSTREAM_UNAVAILABLE, f"the gateway behind cannot be reached: {why}", retry_after=_RETRY_SECONDS
    )
