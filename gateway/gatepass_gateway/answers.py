"""How a refusal looks to an HTTP client: a status, and JSON in the shape of OpenClaw's own refusals. Pure."""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from gatepass.errors import ErrorCode, GatepassError, TokenError
from gatepass_gateway.headers import Headers

_STATUS: Final = {
    ErrorCode.NO_TOKEN: 401,
    ErrorCode.BAD_REQUEST: 400,
    ErrorCode.SECRET_MISPLACED: 400,
    ErrorCode.IDENTITY_FORGED: 403,
    ErrorCode.IDENTITY_UNKNOWN: 403,
    ErrorCode.FORWARDED: 403,
    ErrorCode.BROWSER_ORIGIN: 403,
    ErrorCode.DEVICE_LOGIN: 403,
    ErrorCode.TOO_MANY_CONNECTIONS: 503,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.UPSTREAM_UNAVAILABLE: 503,
    ErrorCode.UPSTREAM_IMPOSTOR: 503,
}

_TYPES: Final = {400: "invalid_request_error", 401: "unauthorized", 403: "forbidden", 503: "unavailable"}


class Answer(NamedTuple):
    """A whole HTTP response."""

    status: int
    headers: Headers
    body: bytes


def answer(error: GatepassError) -> Answer:
    """Return the response that tells `error` to the client. The connection closes after it."""
    status = 401 if isinstance(error, TokenError) else _STATUS.get(error.code, 403)
    fault = {"message": f"gatepass: {error.message}", "type": _TYPES[status], "code": f"gatepass_{error.code}"}
    body = json.dumps({"ok": False, "error": fault}).encode()
    headers: Headers = (
        (b"content-type", b"application/json; charset=utf-8"),
        (b"content-length", str(len(body)).encode("ascii")),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
    )
    if status == 401:
        # RFC 6750 section 3: tells a client which knows it that a new token may help.
        headers += ((b"www-authenticate", b'Bearer realm="gatepass", error="invalid_token"'),)
    if error.retry_after is not None:
        headers += ((b"retry-after", str(error.retry_after).encode("ascii")),)
    return Answer(status, headers, body)
