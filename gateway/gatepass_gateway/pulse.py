"""Whether the proxy still answers: asked by itself, for the service manager's watchdog."""

from __future__ import annotations

import secrets
from ipaddress import IPv4Address
from typing import Final

import anyio
import h11
import structlog

from gatepass_gateway.http_connection import PING_TARGET
from gatepass_gateway.http_peer import BROKEN, HttpPeer
from gatepass_gateway.sock_diag import Address

_log: structlog.stdlib.BoundLogger = structlog.get_logger("service")

_UNANSWERED: Final[tuple[type[Exception], ...]] = (*BROKEN, h11.RemoteProtocolError)


async def answers(address: Address, seconds: float) -> bool:
    """Whether the proxy answers a request to `address` in time. It asks nothing of the gateway behind.

    The request takes a client's way, through the listener's queue to the answer. A connection that the kernel does not
    give us says nothing of the proxy: others may have filled its queue, or the kernel's tables, and must not get it
    killed by that.
    """
    try:
        with anyio.fail_after(seconds / 2):
            stream = await anyio.connect_tcp(*address, local_host=_source(address))
    except OSError:  # TimeoutError is one
        return True
    with anyio.move_on_after(seconds / 2):
        async with stream:
            if await _ping(HttpPeer(stream, h11.CLIENT)):
                return True
    _log.warning("the proxy does not answer itself", address=f"{address[0]}:{address[1]}")
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
