"""Requests to the gateway's port, for `run_as`: plain functions whose arguments and results can be pickled."""

from __future__ import annotations

import http.client
import json
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

SECONDS = 30.0


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    text: str
    arrivals: list[float]
    """When each piece of the body came, in seconds of the monotonic clock."""

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.text)


class Login(NamedTuple):
    """What came of a WebSocket login."""

    ok: bool
    error: dict[str, Any]
    close_code: int | None
    scopes: list[str]
    answers: list[dict[str, Any]]
    """Of the requests that were made after the login."""


def http_request(
    port: int,
    method: str,
    target: str,
    headers: Sequence[tuple[str, str]] = (),
    *,
    body: Any = None,
    source: str | None = None,
    host: str = "127.0.0.1",
) -> Answer:
    """Send one request from address `source`, byte for byte as given: http.client would refuse what attackers send."""
    data = b"" if body is None else json.dumps(body).encode()
    fields = [("Host", f"127.0.0.1:{port}"), ("Connection", "close"), *headers]
    if body is not None:
        fields += [("Content-Type", "application/json"), ("Content-Length", str(len(data)))]
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    bound = None if source is None else (source, 0)
    with socket.create_connection((host, port), SECONDS, source_address=bound) as connection:
        connection.sendall(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + data)
        response = http.client.HTTPResponse(connection, method=method)
        response.begin()
        pieces = []
        while piece := response.read1():
            pieces.append((time.monotonic(), piece.decode()))
    return Answer(response.status, "".join(text for _, text in pieces), [at for at, _ in pieces])


def bearer(token: str) -> tuple[str, str]:
    """Return the header field that brings a token over HTTP."""
    return ("Authorization", f"Bearer {token}")


def log_in(
    port: int,
    auth: Mapping[str, Any] | None,
    *,
    headers: Mapping[str, str] | None = None,
    params: Mapping[str, Any] | None = None,
    path: str = "/",
    requests: tuple[tuple[str, dict[str, Any]], ...] = (),
    host: str = "127.0.0.1",
) -> Login:
    """Log in with a connect frame as OpenClaw's CLI sends it, without a device; then call methods."""
    try:
        with open_websocket(port, headers=headers, path=path, host=host) as websocket:
            return _log_in(websocket, auth, params or {}, requests)
    except InvalidStatus as refused:
        body = (refused.response.body or b"{}").decode()
        return Login(False, {"status": refused.response.status_code, "message": body}, None, [], [])


def open_websocket(
    port: int, *, headers: Mapping[str, str] | None = None, path: str = "/", host: str = "127.0.0.1"
) -> ClientConnection:
    """Upgrade, and say nothing more."""
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return connect(f"ws://{place}{path}", additional_headers=headers, open_timeout=SECONDS, close_timeout=2, proxy=None)


def call(websocket: ClientConnection, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Call a method and return the answer, past whatever else arrives."""
    request_id = str(uuid.uuid4())
    websocket.send(json.dumps({"type": "req", "id": request_id, "method": method, "params": dict(params)}))
    while True:
        message = json.loads(websocket.recv(SECONDS))
        if message.get("type") == "res" and message.get("id") == request_id:
            answer: dict[str, Any] = message
            return answer


def connect_params(auth: Mapping[str, Any] | None, **changes: Any) -> dict[str, Any]:
    """Return the params of a connect frame."""
    params: dict[str, Any] = {
        "minProtocol": 3,
        "maxProtocol": 4,
        "client": {"id": "cli", "version": "2026.9.6", "platform": "linux", "mode": "cli"},
        "caps": [],
        "role": "operator",
        "scopes": ["operator.read", "operator.write", "operator.admin"],
        **changes,
    }
    return params if auth is None else {**params, "auth": dict(auth)}


def _log_in(
    websocket: ClientConnection,
    auth: Mapping[str, Any] | None,
    params: Mapping[str, Any],
    requests: tuple[tuple[str, dict[str, Any]], ...],
) -> Login:
    websocket.recv(SECONDS)  # the challenge
    try:
        hello = call(websocket, "connect", connect_params(auth, **params))
    except ConnectionClosed as closed:
        return Login(False, {"message": closed.rcvd.reason if closed.rcvd else ""}, _code(closed), [], [])
    if not hello["ok"]:
        return Login(False, hello["error"], _wait_for_close(websocket), [], [])
    answers = [call(websocket, method, arguments) for method, arguments in requests]
    return Login(True, {}, None, hello["payload"]["auth"].get("scopes", []), answers)


def _wait_for_close(websocket: ClientConnection) -> int | None:
    try:
        while True:
            websocket.recv(SECONDS)
    except ConnectionClosed as closed:
        return _code(closed)


def _code(closed: ConnectionClosed) -> int | None:
    return closed.rcvd.code if closed.rcvd else None
