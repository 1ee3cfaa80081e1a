"""A gateway that takes gatepass tokens itself, over HTTP and WebSocket, with no proxy before it.

It runs in trusted-proxy mode: people come through a reverse proxy, which says who they are in a header; local programs
bring a token. What gatepass adds is the `Authenticator`; the rest is any Python server, here made with `websockets`:

    gatepass-broker --loopback-user derek@example.com --audience demo --scope operator.read &
    python -m demo.embedded_gateway --port 8080 &
    printf 'Authorization: Bearer %s' "$(gatepass token)" | curl -H @- http://127.0.0.1:8080/
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, NoReturn

import anyio
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers as ResponseHeaders
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from gatepass.daemon.logs import configure_logs
from gatepass.errors import ErrorCode, GatepassError
from gatepass.paths import default_socket
from gatepass_gateway import (
    Authenticator,
    Clients,
    FollowedBroker,
    Identity,
    IdentityPolicy,
    RefusedError,
    Request,
    ReverseProxy,
    SockDiag,
    bearer_secret,
)
from gatepass_gateway.answers import answer
from gatepass_gateway.connect_frame import MAX_CONNECT_FRAME, ConnectFrame, error_frame, parse_connect

AUDIENCE: Final = "demo"
USER_HEADER: Final = "x-demo-user"
LOOPBACK_USER: Final = "derek@example.com"
SCOPES: Final = ("operator.read", "operator.write")

_FIRST_MESSAGE_SECONDS: Final = 3
_POLICY_VIOLATION: Final = 1008


class Gateway:
    """Tells each caller who it is; a caller without identity is turned away. `websockets` takes GET requests only."""

    def __init__(self, authenticator: Authenticator, clients: Clients) -> None:
        self._authenticator = authenticator
        self._clients = clients

    async def answer_http(self, connection: ServerConnection, http_request: HttpRequest) -> Response | None:
        """Answer a plain request, or refuse a WebSocket's upgrade. Return None to let the upgrade go on."""
        try:
            identity = await self._authenticator.identify(self._request(connection, http_request))
            if "Upgrade" in http_request.headers:
                return None
            return _response(HTTPStatus.OK, _described(identity or _refuse_nobody()))
        except GatepassError as error:
            return _refusal(error)

    async def converse(self, connection: ServerConnection) -> None:
        """Serve a WebSocket: a challenge, the client's `connect` with its token, then its requests."""
        with suppress(ConnectionClosed, TimeoutError):
            await connection.send(_event("connect.challenge"))
            with anyio.fail_after(_FIRST_MESSAGE_SECONDS):
                first = await connection.recv(decode=False)
            identity = await self._log_in(connection, first)
            if identity is None:
                return
            async for message in connection:
                await connection.send(_reply(json.loads(message)["id"], _described(identity)))

    async def _log_in(self, connection: ServerConnection, first: bytes) -> Identity | None:
        """Answer the first message. Return whose WebSocket it is from now on, or None if it was closed."""
        request_id = ""
        try:
            frame = parse_connect(first)
            request_id = frame.id
            identity = await self._identify_login(connection, frame)
        except GatepassError as error:
            await connection.send(error_frame(request_id, error).decode())
            await connection.close(_POLICY_VIOLATION, f"gatepass: {error.code}")
            return None
        await connection.send(_reply(frame.id, {"auth": _described(identity)}))
        return identity

    async def _identify_login(self, connection: ServerConnection, frame: ConnectFrame) -> Identity:
        """Return whose login it is: by what the upgrade brought, or by the token in the frame."""
        assert connection.request is not None  # noqa: S101 - there was an upgrade
        upgrade = self._request(connection, connection.request)
        login = upgrade._replace(secret=upgrade.secret or frame.secret, requested_scopes=frame.scopes)
        return await self._authenticator.identify(login) or _refuse_nobody()

    def _request(self, connection: ServerConnection, http_request: HttpRequest) -> Request:
        """Return what decides: the headers, who has the client's end of the connection, and the bearer token."""
        fields = tuple(
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in http_request.headers.raw_items()
        )
        client = self._clients.at_other_end(connection.transport.get_extra_info("socket"))
        return Request(fields, client, bearer_secret(fields))


def _refuse_nobody() -> NoReturn:
    raise RefusedError(
        ErrorCode.NO_TOKEN,
        "the request has no identity; local programs bring a token (gatepass token), people come through the proxy",
    )


def _described(identity: Identity) -> dict[str, Any]:
    return {"user": identity.user, "scopes": None if identity.scopes is None else sorted(identity.scopes)}


def _response(status: HTTPStatus, body: Mapping[str, Any]) -> Response:
    data = json.dumps(body).encode()
    fields = {"Content-Type": "application/json", "Content-Length": str(len(data)), "Connection": "close"}
    return Response(status, status.phrase, ResponseHeaders(fields), data)


def _refusal(error: GatepassError) -> Response:
    """Return the answer that the gatepass proxy would give: a status, and JSON with code and sentence."""
    refusal = answer(error)
    fields = ResponseHeaders([(name.decode(), value.decode()) for name, value in refusal.headers])
    return Response(refusal.status, HTTPStatus(refusal.status).phrase, fields, refusal.body)


def _event(name: str) -> str:
    return json.dumps({"type": "event", "event": name, "payload": {}})


def _reply(request_id: str, payload: Mapping[str, Any]) -> str:
    return json.dumps({"type": "res", "id": request_id, "ok": True, "payload": payload})


async def run(port: int, reverse_proxy_uids: frozenset[int], broker_socket: str) -> None:
    """Serve until the process is ended. Port 0 takes a free one; which, the first line of output says."""
    policy = IdentityPolicy(
        user_header=USER_HEADER.encode(),
        scopes_header=None,
        users={LOOPBACK_USER: frozenset(SCOPES)},
    )
    keys = FollowedBroker(broker_socket)
    with SockDiag() as sock_diag:
        clients = Clients(sock_diag, [ReverseProxy(uid) for uid in reverse_proxy_uids])
        gateway = Gateway(Authenticator(AUDIENCE, policy, keys), clients)
        options: dict[str, Any] = {"process_request": gateway.answer_http, "max_size": MAX_CONNECT_FRAME}
        async with anyio.create_task_group() as tasks, serve(gateway.converse, "127.0.0.1", port, **options) as server:
            tasks.start_soon(keys.run)
            print(server.sockets[0].getsockname()[1], flush=True)
            await server.serve_forever()


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser(prog="python -m demo.embedded_gateway", description="A gateway on loopback.")
    parser.add_argument("--port", type=int, default=0, help="default: a free one; the first line of output says which")
    parser.add_argument("--reverse-proxy-uid", type=int, action="append", default=[], help="whose header counts")
    parser.add_argument("--broker-socket", default=default_socket(), help="where the keys come from")
    options = parser.parse_args(arguments)
    configure_logs("logfmt")
    anyio.run(run, options.port, frozenset(options.reverse_proxy_uid), options.broker_socket)


if __name__ == "__main__":
    main()
