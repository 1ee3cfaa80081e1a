"""Who answers on the port that OpenClaw's commands dial: no other question finds a redirect that is not there.

Asked with a secret that logs nobody in (`openclaw`), which the proxy refuses by itself, in words of its own.
"""

from __future__ import annotations

import json
import secrets
from http.client import HTTPConnection, HTTPException
from typing import Final, Literal

from gatepass.openclaw import ASKED_BY_CHECK, RANDOM_BYTES, no_token

Answering = Literal["proxy", "other", "refused", "silent"]
"""Somebody else than the proxy; nobody, because connections are refused; nobody, though they are taken."""

_MOST: Final = 65_536
_OF_THE_PROXY: Final = "gatepass_"


def who_answers(port: int, timeout: float) -> Answering:
    """Return who answers an HTTP request to 127.0.0.1 at `port` within `timeout` seconds."""
    secret = no_token(ASKED_BY_CHECK, secrets.token_bytes(RANDOM_BYTES))
    connection = HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", "/", headers={"Authorization": f"Bearer {secret}", "Connection": "close"})
        body = connection.getresponse().read(_MOST)
    except ConnectionRefusedError:
        return "refused"
    except (OSError, HTTPException):
        return "silent"
    finally:
        connection.close()
    return "proxy" if _is_the_proxys(body) else "other"


def _is_the_proxys(body: bytes) -> bool:
    try:
        return str(json.loads(body)["error"]["code"]).startswith(_OF_THE_PROXY)
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
