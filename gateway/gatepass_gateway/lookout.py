"""Asking who is at the other end of connections, without one user's making others wait.

To see that a connection has one owner the kernel walks its table of connections, and any user can fill that with so
many that a walk takes tens of milliseconds. So a thread asks, and users take turns.
"""

from __future__ import annotations

import socket

import anyio.to_thread

from gatepass_gateway.clients import Clients
from gatepass_gateway.trusted_proxy import UNKNOWN_CLIENT, Client
from gatepass_gateway.turns import Turns


class Lookout:
    """`quick` is asked on the event loop, `thorough` in a thread: two that share nothing."""

    def __init__(self, quick: Clients, thorough: Clients) -> None:
        self._quick = quick
        self._thorough = thorough
        self._turns = Turns()

    def first_sight(self, connection: socket.socket) -> Client:
        """Return whom to count an accepted connection for."""
        return self._quick.seems_at_other_end(connection)

    async def who(self, connection: socket.socket, seems: Client) -> Client:
        """Return who has the other end of a connection, who at first sight `seems` to. It is closed if that fails."""
        if seems == UNKNOWN_CLIENT:
            return seems
        try:
            async with self._turns.turn(seems.account):
                found = await anyio.to_thread.run_sync(self._thorough.at_other_end, connection)
        except BaseException:
            connection.close()
            raise
        return found if found.account == seems.account else UNKNOWN_CLIENT
