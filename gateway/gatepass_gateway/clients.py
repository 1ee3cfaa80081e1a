"""Who is at the other end of a connection: its user, its cgroup, and whether that is the reverse proxy.

Asked of the kernel, once, when a connection is accepted. What cannot be learned is unknown, and unknown is nobody.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gatepass_gateway.original_destination import numeric, original_destination
from gatepass_gateway.sock_diag import Address, OwnedSocket, SockDiag
from gatepass_gateway.trusted_proxy import UNKNOWN_CLIENT, Client
from gatepass_gateway.units import Units


class ReverseProxy(NamedTuple):
    """A reverse proxy of this machine whose identity header counts."""

    uid: int
    unit: str | None = None
    """The systemd unit that its connections come from; None if any program of the user counts."""


class Clients:
    """Says who is at the other end of connections.

    `redirected_port` is where clients connect to when a firewall leads them to our own port, if it does.
    """

    def __init__(
        self,
        sock_diag: SockDiag,
        reverse_proxies: Sequence[ReverseProxy] = (),
        redirected_port: int | None = None,
        *,
        units: Units | None = None,
    ) -> None:
        self._sock_diag = sock_diag
        self._reverse_proxies = reverse_proxies
        self._redirected_port = redirected_port
        self._units = units or Units.of_this_machine()

    def at_other_end(self, connection: socket.socket) -> Client:
        """Return who has the other end of an accepted TCP connection. Ask before anything of it is read.

        It takes the longer the more connections the machine has, of which any user can make many.
        """
        return self._client(self._owner(connection, self._sock_diag.connected))

    def seems_at_other_end(self, connection: socket.socket) -> Client:
        """Return at once whom to count a connection for: `at_other_end` says the same, or that nobody can tell."""
        return self._client(self._owner(connection, self._sock_diag.seems_connected))

    def _client(self, owner: OwnedSocket | None) -> Client:
        if owner is None:
            return UNKNOWN_CLIENT
        is_reverse_proxy = any(self._is_of(proxy, owner) for proxy in self._reverse_proxies)
        return Client(owner.uid, is_reverse_proxy, owner.cgroup)

    def _is_of(self, proxy: ReverseProxy, owner: OwnedSocket) -> bool:
        if owner.uid != proxy.uid:
            return False
        return proxy.unit is None or self._units.hold(proxy.unit, owner.cgroup)

    def _owner(
        self, connection: socket.socket, find: Callable[[Address, Address], OwnedSocket | None]
    ) -> OwnedSocket | None:
        try:
            client, here = numeric(connection.getpeername()), numeric(connection.getsockname())
            destination = original_destination(connection)
            if destination != here and destination[1] != self._redirected_port:
                # Where two destinations lead to one port, the kernel may change a client's source port, to one that
                # somebody else has towards the same destination. Only the rules of [redirect] let no such client in.
                return None
            owner = find(client, destination)
            # Only while it is there can nobody else have its addresses.
            connection.getpeername()
        except OSError:
            return None
        return owner
