"""What the service manager is told while the proxy serves: how it is, and that it still answers."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Final

import anyio
import h11
import structlog

from gatepass.daemon.systemd import Notifier
from gatepass_gateway.http_connection import PING_TARGET
from gatepass_gateway.http_peer import BROKEN, HttpPeer
from gatepass_gateway.sock_diag import Address

_log: structlog.stdlib.BoundLogger = structlog.get_logger("service")

BEATS: Final = 4
"""In the time that the watchdog allows: two in a row may fail before the service is killed."""
_STATUS_SECONDS: Final = 5
_UNANSWERED: Final[tuple[type[Exception], ...]] = (*BROKEN, h11.RemoteProtocolError)


async def keep_status_true(notifier: Notifier, status: Callable[[], str]) -> None:
    """Tell the status whenever it has changed, without end."""
    told = status()
    while True:
        await anyio.sleep(_STATUS_SECONDS)
        if (current := status()) != told:
            told = current
            notifier.status(told)


async def pet_while_it_answers(notifier: Notifier, watchdog_seconds: float, address: Address) -> None:
    """Reset the watchdog four times in what it allows, for as long as the proxy answers a request to `address`; no end.

    The request takes a client's way, through the listener's queue to the answer, because a timer goes on where the
    serving does not. It asks nothing of the gateway behind, which may be down.
    """
    interval = watchdog_seconds / BEATS
    while True:
        next_beat = anyio.current_time() + interval  # what a beat takes is not added to the pause
        if await _answers(address, interval):
            notifier.alive()
        else:
            _log.warning("the proxy does not answer itself", address=f"{address[0]}:{address[1]}")
        await anyio.sleep_until(next_beat)


async def _answers(address: Address, seconds: float) -> bool:
    """Whether the proxy answers a connection in time.

    One that the kernel does not give us says nothing of the proxy: others may have filled its queue, or the tables of
    the kernel, and must not get it killed by that.
    """
    try:
        with anyio.fail_after(seconds / 2):
            stream = await anyio.connect_tcp(*address, local_host=_source(address))
    except OSError:  # TimeoutError is one
        return True
    with anyio.move_on_after(seconds / 2):
        async with stream:
            return await _ping(HttpPeer(stream, h11.CLIENT))
    return False


async def _ping(peer: HttpPeer) -> bool:
    try:
        await peer.send(h11.Request(method=b"OPTIONS", target=PING_TARGET, headers=[(b"host", b"gatepass")]))
        await peer.send(h11.EndOfMessage())
        return isinstance(await peer.next_event(), h11.Response)
    except _UNANSWERED:
        return False


def _source(address: Address) -> str:
    """Return where to come from: anywhere in 127.0.0.0/8, as a local user could use up the ports of one address."""
    if ":" in address[0]:
        return address[0]
    return str(IPv4Address(f"127.{secrets.randbelow(256)}.{secrets.randbelow(256)}.{secrets.randbelow(254) + 1}"))
