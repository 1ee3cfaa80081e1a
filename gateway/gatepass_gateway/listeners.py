"""The proxy's listening sockets: those that the service manager hands over, or its own."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Final, NoReturn

from gatepass.daemon.systemd import Inherited
from gatepass.errors import ConfigurationError
from gatepass_gateway.sock_diag import Address, SockDiag

_BACKLOG: Final = 1024


def listeners(
    addresses: Sequence[Address], inherited: Iterable[Inherited], sock_diag: SockDiag, parts: ExitStack
) -> list[socket.socket]:
    """Return a listening socket for each address, to be closed by `parts`. Raise `ConfigurationError`.

    If any are handed over, all must be. Closing such a one takes nothing from the manager's: what waits in its queue
    is for the next process.
    """
    given = [parts.enter_context(_given(entry)) for entry in inherited]
    if given:
        _check_all_are_there(given, addresses)
    listening = given or [parts.enter_context(_bound(address)) for address in addresses]
    for address in addresses:
        _refuse_strangers(address, sock_diag)
    return listening


def _check_all_are_there(given: Iterable[socket.socket], addresses: Sequence[Address]) -> None:
    held = [_address(listener) for listener in given]
    if strange := set(held) - set(addresses):
        raise _mismatch(f"the service manager hands over {_listed(strange)}, which is not configured")
    if len(set(held)) < len(held):
        raise _mismatch("the service manager hands over an address twice")
    if missing := set(addresses) - set(held):
        raise _mismatch(f"the service manager does not hand over {_listed(missing)}")


def _refuse_strangers(address: Address, sock_diag: SockDiag) -> None:
    """Refuse a port to which another user's sockets are bound: they could take connections meant for the listener.

    None can be bound there from now on; what is looked for are sockets that were there before. Root's are no
    strangers: the service manager's is one.
    """
    strangers, port = sock_diag.strangers_on(address, os.geteuid()), address[1]
    if strangers:
        raise ConfigurationError(
            f"uid {', '.join(map(str, sorted(strangers)))} holds sockets on port {port} and could take connections "
            f"that are meant for the proxy; stop those processes ('ss -tanp sport = :{port}' shows them)",
            where="listen",
        )


def _given(entry: Inherited) -> socket.socket:
    try:
        listener = socket.socket(fileno=entry.descriptor)
    except OSError:
        _refuse_given(entry, "is no socket", "hand over none but the proxy's port (ListenStream=)")
    try:
        _check_given(entry, listener)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _check_given(entry: Inherited, listener: socket.socket) -> None:
    if listener.family not in (socket.AF_INET, socket.AF_INET6) or listener.proto != socket.IPPROTO_TCP:
        _refuse_given(entry, "is no TCP socket", "use ListenStream= with an address and a port")
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        _refuse_given(entry, "does not listen", "use ListenStream= and Accept=no")
    if listener.family == socket.AF_INET6 and not listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        _refuse_given(entry, "also takes IPv4", "use ListenStream= with 127.0.0.1 or [::1] itself")


def _refuse_given(entry: Inherited, fault: str, cure: str) -> NoReturn:
    raise ConfigurationError(
        f"descriptor {entry.descriptor} ('{entry.name}') from the service manager {fault}; {cure} in the socket unit",
        where="listen",
    )


def _mismatch(fault: str) -> ConfigurationError:
    return ConfigurationError(
        f"{fault}; give listen.port and listen.addresses the same addresses as ListenStream= in the socket unit, as "
        "'gatepass-broker install' does",
        where="listen",
    )


def _listed(addresses: Iterable[Address]) -> str:
    return ", ".join(f"{host} port {port}" for host, port in sorted(addresses))


def _address(listener: socket.socket) -> Address:
    host, port = listener.getsockname()[:2]
    return host, port


def _bound(address: Address) -> socket.socket:
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
    return listener
