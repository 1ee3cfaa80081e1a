"""The broker's pulse: to the service manager it is alive as long as it answers a request as it answers a client's."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Final

import anyio
import structlog

from gatepass.frames import MAX_FRAME, FrameDecoder, encode_frame
from gatepass.messages import Request, StatusRequest, request_message
from gatepass_broker.connection import Connection, House

_log: Final = structlog.stdlib.get_logger()

_REQUEST: Final = encode_frame(request_message(Request(1, StatusRequest())))


async def answers(house: House, seconds: float) -> bool:
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
