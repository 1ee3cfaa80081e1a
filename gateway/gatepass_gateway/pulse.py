"""Whether the proxy still answers: asked by itself, for the service manager's watchdog."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Final, NamedTuple

import anyio
import h11
import structlog
from anyio.abc import SocketAttribute, SocketStream

from gatepass.daemon.pulse import Queue
from gatepass_gateway.http_connection import PING_TARGET
from gatepass_gateway.http_peer import BROKEN, HttpPeer
from gatepass_gateway.original_destination import numeric
from gatepass_gateway.sock_diag import Address, SockDiag

_log: structlog.stdlib.BoundLogger = structlog.get_logger("service")

_UNANSWERED: Final[tuple[type[Exception], ...]] = (*BROKEN, h11.RemoteProtocolError)


class Pulse(NamedTuple):
    """Asks the proxy at `address`, which takes what comes from `queues`."""

    address: Address
    sock_diag: SockDiag
    queues: Sequence[Queue]

    async def answers(self, seconds: float) -> bool:
        """Whether the proxy answers a request in time. It asks nothing of the gateway behind.

        The request takes a client's way, through the listener's queue to the answer. A connection that the kernel does
        not give us, or that still waits for its turn while others are let in, says nothing of the proxy: others may
        have filled its queue, or the kernel's tables, and must not get it killed by that.
        """
        taken = self._taken()
        try:
            with anyio.fail_after(seconds / 2):
                stream = await anyio.connect_tcp(*self.address, local_host=_source(self.address))
        except OSError:  # TimeoutError is one
            return True
        async with stream:
            with anyio.move_on_after(seconds / 2) as limit:
                if await _ping(HttpPeer(stream, h11.CLIENT)):
                    return True
            if limit.cancelled_caught and self._taken() != taken and not self._is_accepted(stream):
                return True
        _log.warning("the proxy does not answer itself", address=f"{self.address[0]}:{self.address[1]}")
        return False

    def _taken(self) -> int:
        return sum(queue.taken for queue in self.queues)

    def _is_accepted(self, stream: SocketStream) -> bool:
        return self.sock_diag.is_accepted(self.address, numeric(stream.extra(SocketAttribute.raw_socket).getsockname()))


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
