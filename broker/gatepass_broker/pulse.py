"""The broker's pulse: to the service manager it is alive as long as it answers a request as it answers a client's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import anyio
import structlog

from gatepass.daemon.systemd import Notifier
from gatepass.frames import MAX_FRAME, FrameDecoder, encode_frame
from gatepass.messages import Request, StatusRequest, request_message
from gatepass_broker.connection import Connection, House

BEATS: Final = 4
"""In the time that the watchdog allows: two in a row may fail before the service is killed."""

STATUS_SECONDS: Final = 10.0
"""Between two looks at the status where there is no watchdog."""

_REQUEST: Final = encode_frame(request_message(Request(1, StatusRequest())))

_log: Final = structlog.stdlib.get_logger()


async def keep_manager_informed(notifier: Notifier, house: House, status: Callable[[], str]) -> None:
    """Tell the manager without end that the broker answers, and how it is. Return at once where there is no manager."""
    if not notifier.is_managed:
        return
    interval = STATUS_SECONDS if notifier.watchdog_seconds is None else notifier.watchdog_seconds / BEATS
    told = ""
    while True:
        next_beat = anyio.current_time() + interval  # what a beat takes is not added to the pause
        if await _answers(house, interval):
            notifier.alive()
        if (now := status()) != told:
            told = now
            notifier.status(told)
        await anyio.sleep_until(next_beat)


async def _answers(house: House, seconds: float) -> bool:
    """Whether a request is answered in time, on a connection like a client's: attested, decided, written.

    Any answer will do. One that refuses, because too many connections are open, shows as well that somebody is there.
    """
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: Connection(house, frozenset({"request"})), theirs)
        with anyio.move_on_after(seconds), suppress(OSError):  # it may be cut off, to make room for a client
            await loop.sock_sendall(ours, _REQUEST)
            decoder = FrameDecoder()
            while data := await loop.sock_recv(ours, MAX_FRAME):
                decoder.feed(data)
                if decoder.next_message() is not None:
                    return True
    _log.error("the broker does not answer itself", waited=seconds)
    return False
