"""One HTTP request to the gateway behind and its answer back, both streamed."""

from __future__ import annotations

from functools import partial
from typing import Final

import anyio
import h11

from gatepass.errors import ErrorCode, TryLaterError
from gatepass_gateway.concurrency import run_beside
from gatepass_gateway.headers import Headers, end_to_end
from gatepass_gateway.http_peer import BROKEN, Event, HttpPeer
from gatepass_gateway.refused import RefusedError
from gatepass_gateway.upstream import Upstream, Way

_UNREADABLE: Final[tuple[type[Exception], ...]] = (*BROKEN, h11.RemoteProtocolError)
_UNWILLING: Final[tuple[type[Exception], ...]] = (*BROKEN, h11.LocalProtocolError)

_MAX_PIPELINED: Final = 65_536
"""Bytes of further requests that are taken while one is answered; more waits in the kernel."""


async def exchange(  # noqa: PLR0913 - a request, where it goes, and how
    client: HttpPeer, request: h11.Request, headers: Headers, upstream: Upstream, way: Way, *, body_seconds: float
) -> bool:
    """Pass `request` on with `headers` and the answer back. Return whether the client's connection can go on.

    Each request has an upstream connection of its own: none can ever carry what belongs to another identity.
    Raise `TryLaterError` if there is no answer, `h11.RemoteProtocolError` if the request's body is no HTTP, and the
    stream's errors if the client is gone or the answer was cut off.
    """
    async with await upstream.connect(way) as stream:
        server = HttpPeer(stream, h11.CLIENT)
        fields = [*headers, (b"connection", b"close"), *_framing(request)]
        await server.send(h11.Request(method=request.method, target=request.target, headers=fields))
        await run_beside(
            partial(pass_answer_back, server, client), partial(_pass_request_on, client, server, body_seconds)
        )
    if client.state.their_state is h11.SEND_BODY:
        await client.linger()  # the gateway answered before the whole request was there
    return client.state.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}


def _framing(request: h11.Request) -> Headers:
    """Announce a chunked body as such; h11 cuts it anew, so that both sides agree on its end."""
    if any(name == b"transfer-encoding" for name, _ in request.headers):
        return ((b"transfer-encoding", b"chunked"),)
    return ()


async def _pass_request_on(client: HttpPeer, server: HttpPeer, body_seconds: float) -> None:
    """Pass the body on, then watch for the client to hang up: an answer without end must not go on for nobody."""
    while True:
        event = await _next_of_body(client, body_seconds)
        if not isinstance(event, h11.Data | h11.EndOfMessage):
            raise anyio.EndOfStream
        # Trailers end here: they could name any header.
        passed_on = h11.EndOfMessage() if isinstance(event, h11.EndOfMessage) else event
        try:
            await server.send(passed_on)
        except _UNWILLING:
            return  # the gateway answered without reading to the end: its answer is on the way
        if passed_on is not event:
            break
    while len(client.state.trailing_data[0]) < _MAX_PIPELINED:
        if not await client.receive():
            raise anyio.EndOfStream


async def _next_of_body(client: HttpPeer, seconds: float) -> Event:
    try:
        with anyio.fail_after(seconds):
            return await client.next_event()
    except TimeoutError:
        raise RefusedError(ErrorCode.BAD_REQUEST, f"nothing of the request's body came for {seconds:g} s") from None


async def pass_answer_back(server: HttpPeer, client: HttpPeer, first: h11.Event | None = None) -> None:
    """Pass the gateway's answer on as it comes, from `first` on. Raise `TryLaterError` if there is none."""
    while True:
        event = first or await next_of_answer(server, answered=client.state.our_state is h11.SEND_BODY)
        first = None
        if isinstance(event, h11.Response):
            await client.send(_answer_head(event))
        elif isinstance(event, h11.Data):
            await client.send(event)
        elif isinstance(event, h11.EndOfMessage):
            await client.send(h11.EndOfMessage())
            return


def _answer_head(response: h11.Response) -> h11.Response:
    headers = end_to_end(response.headers)
    if any(name == b"transfer-encoding" for name, _ in response.headers):
        # A length beside a chunked body means nothing (RFC 9112 section 6.3), and would be held against the body here.
        headers = tuple(field for field in headers if field[0] != b"content-length")
    return h11.Response(status_code=response.status_code, reason=response.reason, headers=list(headers))


async def next_of_answer(server: HttpPeer, *, answered: bool = False) -> h11.Event:
    """Return the next event of the gateway's answer. Raise `TryLaterError` if there is none and will be none."""
    try:
        event: h11.Event | type[h11.PAUSED] = await server.next_event()
    except _UNREADABLE:
        event = h11.ConnectionClosed()
    if isinstance(event, h11.ConnectionClosed) or not isinstance(event, h11.Event):
        if answered:
            raise anyio.BrokenResourceError  # cut the client off too: half an answer must not look whole
        raise TryLaterError(
            ErrorCode.UPSTREAM_UNAVAILABLE, "the gateway behind closed the connection without an answer", retry_after=2
        )
    return event
