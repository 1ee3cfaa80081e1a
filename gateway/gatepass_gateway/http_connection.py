"""One client connection: HTTP requests, each judged by itself, until it closes or becomes a WebSocket."""

from __future__ import annotations

from typing import Final

import anyio
import h11
import structlog
from anyio.abc import SocketStream

from gatepass.daemon.logs import SeldomPerKey
from gatepass.errors import ErrorCode, GatepassError
from gatepass_gateway.gate import Gate
from gatepass_gateway.headers import Headers, bearer_secret, connection_options, is_forwarding
from gatepass_gateway.http_exchange import exchange
from gatepass_gateway.http_peer import HttpPeer
from gatepass_gateway.refused import RefusedError
from gatepass_gateway.secret_shape import is_gatepass_shaped
from gatepass_gateway.trusted_proxy import Client, Identity, Request
from gatepass_gateway.upstream import Way
from gatepass_gateway.websocket_session import WebSocketRequest, serve_websocket

_log: structlog.stdlib.BoundLogger = structlog.get_logger("http")

_REFUSED: Final = SeldomPerKey("refused")

PING_TARGET: Final = b"*"
"""What `OPTIONS *` asks about is the server itself (RFC 9110 section 9.3.7)."""

_FIRST_REQUEST_SECONDS: Final = 2
"""How long a connection that was just taken may take to bring its request when the proxy is told to stop."""


async def serve_client(stream: SocketStream, client: Client, gate: Gate) -> None:
    """Serve one client until its connection closes. Raise the stream's errors (`BROKEN`) if the client goes first."""
    peer = HttpPeer(stream, h11.SERVER)
    try:
        grace = _FIRST_REQUEST_SECONDS
        while await _serve_request(peer, client, gate, grace):
            peer.state.start_next_cycle()
            grace = 0
    except h11.RemoteProtocolError as error:
        await peer.refuse(RefusedError(ErrorCode.BAD_REQUEST, f"the request is not valid HTTP: {error}"))
    except GatepassError as error:
        _REFUSED.warn((client.account, error.code), uid=client.uid, reason=error.code, message=error.message)
        await peer.refuse(error)


async def _serve_request(peer: HttpPeer, client: Client, gate: Gate, grace: float) -> bool:
    """Serve one request. Return whether another may follow on the connection."""
    event = None
    with gate.stopping.interruptible(gate.deadlines.head, grace=grace):
        event = await peer.next_event()
    if not isinstance(event, h11.Request):
        return False
    headers: Headers = tuple(event.headers)
    _refuse_ambiguous(event, headers)
    identity = await gate.authenticator.identify(Request(headers, client, bearer_secret(headers)))
    _refuse_stray_secrets(event.target, headers, identity)
    if event.target == PING_TARGET:
        return await _answer_ping(peer)
    if _asks_for_websocket(event, headers):
        await serve_websocket(peer, _websocket_request(event, headers, client, identity), gate)
        return False
    by_itself = identity is None and gate.may_log_in_by_itself(client, event.target, headers)
    if by_itself:
        await gate.check_broker()
    with gate.hold_exchange(client, headers, identity, by_itself=by_itself) as held, held.interruptible():
        _log.debug("request", uid=client.uid, method=event.method.decode(), user=identity and identity.user)
        way = Way.IDENTITY if identity else Way.ANONYMOUS
        fields = gate.headers_upstream(headers, identity)
        return await exchange(peer, event, fields, gate.upstream, way, body_seconds=gate.deadlines.body)
    raise held.cut or anyio.BrokenResourceError


def _websocket_request(
    event: h11.Request, headers: Headers, client: Client, identity: Identity | None
) -> WebSocketRequest:
    """Return the upgrade as it goes on. One that brought a token goes on without it, and without its identity yet."""
    if identity is None or identity.token_id is None:
        return WebSocketRequest(event, headers, client, identity, None)
    kept = tuple(field for field in headers if field[0] != b"authorization")
    return WebSocketRequest(event, kept, client, None, bearer_secret(headers))


async def _answer_ping(peer: HttpPeer) -> bool:
    """Say that the proxy itself is there, whatever the gateway behind does."""
    await peer.send(h11.Response(status_code=204, reason="No Content", headers=[(b"connection", b"close")]))
    await peer.send(h11.EndOfMessage())
    await peer.linger()
    return False


def _refuse_ambiguous(request: h11.Request, headers: Headers) -> None:
    """Refuse what two servers could read in two ways (RFC 9112 section 11.2), beyond what h11 refuses itself."""
    is_ping = request.method == b"OPTIONS" and request.target == PING_TARGET
    if not request.target.startswith(b"/") and not is_ping:
        raise RefusedError(ErrorCode.BAD_REQUEST, "the request's target is not a path: this is no forward proxy")
    names = [name for name, _ in headers]
    if b"transfer-encoding" in names and b"content-length" in names:
        raise RefusedError(ErrorCode.BAD_REQUEST, "the request has both a Content-Length and a Transfer-Encoding")
    for once in (b"authorization", b"host", b"content-length", b"upgrade"):
        if names.count(once) > 1:
            raise RefusedError(ErrorCode.BAD_REQUEST, f"the request has more than one '{once.decode()}' header")
    for option in connection_options(headers):
        # These end at the next hop if `Connection` names them, and with them what they say of who sends the request.
        if is_forwarding(option) or option in (b"authorization", b"origin"):
            raise RefusedError(
                ErrorCode.BAD_REQUEST, f"'Connection' must not name '{option.decode('ascii', 'replace')}'"
            )


def _refuse_stray_secrets(target: bytes, headers: Headers, identity: Identity | None) -> None:
    """Refuse anything gatepass-shaped that would be passed on: in the target, or in a header of any name.

    The token that gave the identity is not passed on, and so may stand where it is.
    """
    verified = identity is not None and identity.token_id is not None
    values = (value for name, value in headers if not (verified and name == b"authorization"))
    if is_gatepass_shaped(b"\n".join((target, *values)).decode("latin-1")):
        raise RefusedError(
            ErrorCode.SECRET_MISPLACED,
            "a gatepass token counts only in 'Authorization: Bearer' or in the connect frame, not in the URL or "
            "another header",
        )


def _asks_for_websocket(request: h11.Request, headers: Headers) -> bool:
    """Whether this is a WebSocket upgrade (RFC 6455 section 4.1). Any other upgrade is ignored, as HTTP allows."""
    if [value.lower() for name, value in headers if name == b"upgrade"] != [b"websocket"]:
        return False
    if (
        request.http_version < b"1.1"
        or request.method != b"GET"
        or any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)
    ):
        raise RefusedError(ErrorCode.BAD_REQUEST, "a WebSocket upgrade is an HTTP/1.1 GET without a body")
    return True
