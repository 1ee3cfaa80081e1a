"""Accepting connections one by one, where pidfds do not come with them (before Linux 6.5).

There a caller is known by a pid, and that this is still its own shows in that its process began before the connection
was there (`pidfd.hold_by_pid`). So for each connection a moment is kept at which it was not: the last one before it at
which the queue of the socket was empty. The event loop's own servers accept several before they tell of the first, and
an empty queue then says nothing about those.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from gatepass.daemon.logs import SeldomWarning
from gatepass_broker.pidfd import boottime

AT_ONCE: Final = 256
"""Connections accepted before anything else is done: as many as the kernel holds, so that the queue is seen empty."""
RETRY_SECONDS: Final = 1.0
"""The pause after the kernel had no descriptor or memory for a connection; asyncio's own."""

_WAITING: Final = SeldomWarning("connections wait: none can be accepted now")


class Acceptor:
    """Accepts what connects to `listening`, until closed. The socket stays its owner's.

    `protocol` makes a connection's protocol from a `pidfd.boottime` at which it was not there yet, if one is known.
    """

    def __init__(self, listening: socket.socket, protocol: Callable[[int | None], asyncio.Protocol]) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._protocol = protocol
        self._empty_at: int | None = None
        self._begun: set[asyncio.Task[object]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._listen()

    def close(self) -> None:
        """Accept no more. Connections that were accepted go on."""
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._listening)

    def _listen(self) -> None:
        self._retry = None
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        """Accept what waits."""
        for _ in range(AT_ONCE):
            before = boottime()
            try:
                connection, _ = self._listening.accept()
            except BlockingIOError:
                self._empty_at = before
                return
            except ConnectionAbortedError:  # the client's affair
                continue
            except OSError as error:  # no descriptors, no memory
                self._pause(error)
                return
            self._begin(connection)

    def _begin(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        absent_at = self._empty_at
        begin = self._loop.connect_accepted_socket(lambda: self._protocol(absent_at), connection)
        task = self._loop.create_task(begin)
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    def _pause(self, error: OSError) -> None:
        _WAITING.warn(error=error.strerror)
        self._loop.remove_reader(self._listening)
        self._retry = self._loop.call_later(RETRY_SECONDS, self._listen)
