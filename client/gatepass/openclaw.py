"""OpenClaw's exec-secret protocol (its docs, gateway/secrets), which `gatepass openclaw secret` speaks. No I/O.

OpenClaw starts the command, writes `{"protocolVersion":1,"provider":…,"ids":[…]}` to its stdin and reads
`{"protocolVersion":1,"values":{id: secret}}` from its stdout. A provider that fails keeps the gateway from starting and
from every reload, so where there is no token each id gets a secret that can never log in and says why.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from typing import Final

NO_TOKEN_PREFIX: Final = "gatepass-none."
"""Begins what `gatepass openclaw secret` answers where there is no token to give: it can never log in."""

ASKED_BY_GATEWAY: Final = "gateway"
"""The reason in a secret for the gateway's own use; every other reason but the next is an `ErrorCode`."""

ASKED_BY_CHECK: Final = "check"
"""The reason in the secret with which `gatepass openclaw check` sees who answers."""

PROTOCOL_VERSION: Final = 1
RANDOM_BYTES: Final = 16


class AskedByGatewayError(Exception):
    """The gateway may be asking, which must never get a token."""


def parse_request(data: bytes) -> tuple[str, ...]:
    """Return the ids that are asked for, in order. Raise `ValueError` for anything that is no request."""
    try:
        request = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    ids = request.get("ids") if isinstance(request, dict) else None
    if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids):
        raise ValueError("no list of ids")
    return tuple(ids)


def response(values: dict[str, str]) -> bytes:
    """Return the answer that gives each id its secret."""
    return json.dumps({"protocolVersion": PROTOCOL_VERSION, "values": values}, separators=(",", ":")).encode("ascii")


def no_token(reason: str, random: bytes) -> str:
    """Return a secret that can never log in, and that nobody can guess: a gateway may take it for its password.

    `reason` is an `ErrorCode`, `ASKED_BY_GATEWAY` or `ASKED_BY_CHECK`, `random` are `RANDOM_BYTES` of a random source.
    """
    return f"{NO_TOKEN_PREFIX}{reason}.{urlsafe_b64encode(random).rstrip(b'=').decode('ascii')}"
