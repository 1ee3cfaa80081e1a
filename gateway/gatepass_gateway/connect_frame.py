"""OpenClaw's first WebSocket frame, `connect`, and its answer (OpenClaw's docs, gateway/protocol/handshake). No I/O.

The frame is read with the strictness that makes two parsers agree: what OpenClaw sees is what was judged here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, NoReturn

from gatepass.errors import ErrorCode, GatepassError, TryLaterError
from gatepass_gateway.refused import RefusedError
from gatepass_gateway.secret_shape import is_gatepass_shaped

MAX_CONNECT_FRAME: Final = 65_536
"""Bytes of the largest frame before login. Source: OpenClaw's MAX_PREAUTH_PAYLOAD_BYTES."""

OPERATOR_ROLE: Final = "operator"
"""The role of people and their tools, and what a frame without a role asks for."""

_TOKEN_FIELDS: Final = ("password", "token")
"""Members of `auth` in which a client may bring a gatepass token."""

_DEVICE_FIELDS: Final = ("bootstrapToken", "deviceToken")


class ConnectFrame(NamedTuple):
    """A `connect` request as far as it matters here."""

    id: str
    role: str
    secret: str | None
    """The one secret that may be a gatepass token."""
    scopes: frozenset[str]
    """What the client asks for."""
    brings_device_credential: bool
    """Whether it would log in by a device or bootstrap token that OpenClaw gave out itself."""
    brings_setup_code: bool
    """Whether it would log in by a bootstrap token, for which OpenClaw gives a node the token of an operator, too."""
    brings_credential: bool
    """Whether it brings anything to log in with."""
    device: str | None
    """The id of the device that it says it is; only the gateway behind can tell whether that is true."""
    client: str
    """What the client calls itself; may be empty, or anything."""
    message: dict[str, Any]


def parse_connect(payload: bytes) -> ConnectFrame:
    """Return the connect request in a first message. Raise `RefusedError` for anything else."""
    message = _parse_json(payload)
    request_id, params = message.get("id"), message.get("params")
    if message.get("type") != "req" or message.get("method") != "connect":
        raise _bad("the first request on a connection must be 'connect'")
    if not isinstance(request_id, str) or not isinstance(params, dict):
        raise _bad("the connect request has no id or no params")
    auth = params.get("auth", {})
    role, scopes = params.get("role", OPERATOR_ROLE), params.get("scopes", [])
    if not isinstance(auth, dict) or not isinstance(role, str) or not _are_strings(scopes):
        raise _bad("the connect request has an auth, role or scopes of the wrong type")
    return ConnectFrame(
        id=request_id,
        role=role,
        secret=_secret(auth),
        scopes=frozenset(scopes),
        brings_device_credential=_brings_device_credential(auth, has_device="device" in params),
        brings_setup_code=bool(auth.get("bootstrapToken")),
        brings_credential=any(auth.values()),
        device=_device(params.get("device")),
        client=_client(params.get("client")),
        message=message,
    )


def _device(device: Any) -> str | None:  # noqa: ANN401 - whatever a client sends
    name = device.get("id") if isinstance(device, dict) else None
    return name if isinstance(name, str) and name else None


def refuse_misplaced_secrets(frame: ConnectFrame, *, besides_auth: bool) -> None:
    """Raise `RefusedError` if anything gatepass-shaped would be passed on with the frame.

    `besides_auth` is for a frame whose credentials are taken out before it goes on.
    """
    passed_on = _without_credentials(frame) if besides_auth else frame.message
    if is_gatepass_shaped("\n".join(_strings(passed_on))):
        raise RefusedError(
            ErrorCode.SECRET_MISPLACED,
            "a gatepass token counts only as auth.token or auth.password of an operator's connect request",
        )


def with_identity(frame: ConnectFrame, scopes: frozenset[str]) -> bytes:
    """Return the frame as it goes upstream beside an identity header: without any credential, asking for `scopes`.

    `device` goes too: its signature covers the nonce of another connection and the secret that was taken out.
    """
    message = _without_credentials(frame)
    message["params"]["scopes"] = sorted(scopes)
    return json.dumps(message, separators=(",", ":")).encode()


def _without_credentials(frame: ConnectFrame) -> dict[str, Any]:
    params = {key: value for key, value in frame.message["params"].items() if key not in ("auth", "device")}
    return {**frame.message, "params": params}


def error_frame(request_id: str, error: GatepassError) -> bytes:
    """Return the answer to `connect` that OpenClaw's own clients show to people, and stop or retry at.

    Only `message` reaches the terminal. Its beginning is one of those that `openclaw health` takes for a final
    refusal; at any other it tries again for a minute. `details.code` tells long-lived clients whether to reconnect.
    """
    if is_temporary(error):
        code, kind, known = "UNAVAILABLE", "AUTH_UNAUTHORIZED", "unauthorized: gateway password missing"
    elif error.code is ErrorCode.LOCKED:
        # A command ends with it, as with any refusal. A long-lived client keeps trying, up to every half minute, and is
        # back when the lock is off: at any code but AUTH_UNAUTHORIZED it would give up for good.
        code, kind, known = "INVALID_REQUEST", "AUTH_UNAUTHORIZED", "unauthorized: gateway password mismatch"
    elif error.code is ErrorCode.NO_TOKEN:
        code, kind, known = "INVALID_REQUEST", "AUTH_PASSWORD_MISSING", "unauthorized: gateway password missing"
    else:
        code, kind, known = "INVALID_REQUEST", "AUTH_PASSWORD_MISMATCH", "unauthorized: gateway password mismatch"
    if error.code in (ErrorCode.UPSTREAM_UNAVAILABLE, ErrorCode.UPSTREAM_IMPOSTOR):
        known = "unavailable"
    body: dict[str, Any] = {
        "code": code,
        "message": f"{known} (gatepass: {error.message})",
        "details": {
            "code": kind,
            "authReason": f"gatepass_{error.code}",
            "canRetryWithDeviceToken": False,
            "recommendedNextStep": "wait_then_retry" if kind == "AUTH_UNAUTHORIZED" else "update_auth_credentials",
        },
    }
    if error.retry_after is not None:
        body |= {"retryable": True, "retryAfterMs": error.retry_after * 1000}
    return json.dumps({"type": "res", "id": request_id, "ok": False, "error": body}, separators=(",", ":")).encode()


def is_temporary(error: GatepassError) -> bool:
    """Whether the same login may succeed later with nothing changed by the client."""
    return isinstance(error, TryLaterError) or error.retry_after is not None


def answer_to(payload: bytes, request_id: str) -> bool | None:
    """Return whether a server's message answers request `request_id` with yes or no; None if it is no answer to it."""
    message = _server_message(payload)
    if message.get("type") != "res" or message.get("id") != request_id:
        return None
    return message.get("ok") is True


def is_challenge(payload: bytes) -> bool:
    """Whether a server's message is the event that begins every connection."""
    message = _server_message(payload)
    return message.get("type") == "event" and message.get("event") == "connect.challenge"


def _server_message(payload: bytes) -> dict[str, Any]:
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _secret(auth: dict[str, Any]) -> str | None:
    """Return the token field that is gatepass-shaped, else the first that is set. Two different tokens are an error."""
    given = [auth[name] for name in _TOKEN_FIELDS if auth.get(name) is not None]
    if not _are_strings(given):
        raise _bad("the connect request has a secret that is not a string")
    shaped = {secret for secret in given if is_gatepass_shaped(secret)}
    if len(shaped) > 1:
        raise _bad("the connect request has two different gatepass tokens")
    return next(iter(shaped), given[0] if given else None)


def _brings_device_credential(auth: dict[str, Any], *, has_device: bool) -> bool:
    """Whether OpenClaw could log the client in by a token of its own; with a device block it tries `token` as one."""
    return any(auth.get(name) for name in _DEVICE_FIELDS) or (has_device and bool(auth.get("token")))


def _client(client: object) -> str:
    names = client if isinstance(client, dict) else {}
    return next((name for name in (names.get("displayName"), names.get("id")) if name and isinstance(name, str)), "")


def _parse_json(payload: bytes) -> dict[str, Any]:
    try:
        message = json.loads(payload.decode(), object_pairs_hook=_without_duplicates, parse_constant=_refuse)
        json.dumps(message, allow_nan=False)  # refuses what can be read but not written: deep nesting, 1e999
    except (ValueError, RecursionError):
        raise _bad("the first message is not JSON without duplicate names") from None
    if not isinstance(message, dict):
        raise _bad("the first message is not a JSON object")
    return message


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate name")
    return members


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _are_strings(value: Any) -> bool:  # noqa: ANN401 - this is what finds out the type
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _strings(value: Any) -> Iterator[str]:  # noqa: ANN401 - walks any JSON value
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            pending += item.keys()
            pending += item.values()
        elif isinstance(item, list):
            pending += item


def _bad(why: str) -> RefusedError:
    return RefusedError(ErrorCode.BAD_REQUEST, why)
