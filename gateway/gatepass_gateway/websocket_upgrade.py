"""WebSocket handshakes (RFC 6455 section 4): the client's, passed on, and one of the proxy's own."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeGuard

import anyio
import h11

from gatepass.errors import ErrorCode, TryLaterError
from gatepass_gateway.headers import Headers, values_of
from gatepass_gateway.http_exchange import next_of_answer, pass_answer_back
from gatepass_gateway.http_peer import HttpPeer
from gatepass_gateway.upstream import Upstream, Way
from gatepass_gateway.websocket_link import WebSocketLink

_ACCEPT_SUFFIX: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_UPGRADE: Final[Headers] = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))
_PREFIX: Final = b"sec-websocket-"


async def pass_upgrade(
    client: HttpPeer, server: HttpPeer, request: h11.Request, fields: Headers, *, seconds: float
) -> bool:
    """Pass the client's upgrade on with `fields` and the gateway's answer back. Return whether it was accepted.

    Extensions are not offered: a compressed frame could not be read.
    """
    offered = tuple((name, value) for name, value in request.headers if name.startswith(_PREFIX))
    kept = tuple(field for field in offered if field[0] != b"sec-websocket-extensions")
    await _send_upgrade(server, request.target, (*_without_handshake(fields), *kept))
    await client.next_event()  # the end of a request without a body
    event = await _answer_within(server, seconds)
    if not _is_switch(event):
        await pass_answer_back(server, client, event)
        return False
    accepted = [(name, value) for name, value in event.headers if name.startswith(_PREFIX)]
    await client.send(h11.InformationalResponse(status_code=101, headers=[*_UPGRADE, *accepted]))
    return True


@asynccontextmanager
async def open_websocket(
    upstream: Upstream, target: bytes, fields: Headers, *, seconds: float
) -> AsyncIterator[WebSocketLink]:
    """Open a WebSocket of the proxy's own, with an identity in `fields`. Raise `TryLaterError` if it is refused."""
    key = base64.b64encode(os.urandom(16))
    async with await upstream.connect(Way.IDENTITY) as stream:
        server = HttpPeer(stream, h11.CLIENT)
        own = ((b"sec-websocket-key", key), (b"sec-websocket-version", b"13"))
        await _send_upgrade(server, target, (*_without_handshake(fields), *own))
        event = await _answer_within(server, seconds)
        if not _is_switch(event) or values_of(tuple(event.headers), b"sec-websocket-accept") != [_accept(key)]:
            status = event.status_code if isinstance(event, h11.Response) else "no WebSocket"
            raise TryLaterError(
                ErrorCode.UPSTREAM_UNAVAILABLE,
                f"the gateway behind did not open a WebSocket for this identity (it answered {status})",
                retry_after=2,
            )
        yield websocket_link(server, peer_is_client=False)


def websocket_link(peer: HttpPeer, *, peer_is_client: bool) -> WebSocketLink:
    """Return the WebSocket that an upgraded HTTP connection has become."""
    return WebSocketLink(peer.stream, peer.state.trailing_data[0], peer_is_client=peer_is_client)


async def _send_upgrade(server: HttpPeer, target: bytes, fields: Headers) -> None:
    await server.send(h11.Request(method=b"GET", target=target, headers=[*fields, *_UPGRADE]))
    await server.send(h11.EndOfMessage())


async def _answer_within(server: HttpPeer, seconds: float) -> h11.Event:
    """Return the gateway's answer to an upgrade. Raise `TryLaterError` if there is none in time."""
    try:
        with anyio.fail_after(seconds):
            return await next_of_answer(server)
    except TimeoutError:
        raise TryLaterError(
            ErrorCode.UPSTREAM_UNAVAILABLE, "the gateway behind did not answer the upgrade in time", retry_after=2
        ) from None


def _without_handshake(fields: Headers) -> Headers:
    return tuple(field for field in fields if not field[0].startswith(_PREFIX))


def _is_switch(event: object) -> TypeGuard[h11.InformationalResponse]:
    return isinstance(event, h11.InformationalResponse) and event.status_code == 101


def _accept(key: bytes) -> bytes:
    return base64.b64encode(hashlib.sha1(key + _ACCEPT_SUFFIX, usedforsecurity=False).digest())
