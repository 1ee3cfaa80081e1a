"""One request and one login, with the same credentials, as the user who shall own the connection.

The clients are those of the end-to-end tests: what OpenClaw is tried with there is what is sent here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from demo.rows import Outcomes, http_outcome, websocket_outcome
from e2e.accounts import run_as
from e2e.callers import bearer, http_request, log_in
from e2e.openclaw_instance import Account

# `socket` loads this where it is first used, and another user need not be able to read Python's own files.
"".encode("idna")


class Place(NamedTuple):
    """A gateway to call."""

    port: int
    target: str
    """The path of the HTTP request."""
    requests: tuple[tuple[str, dict[str, Any]], ...] = ()
    """Made over the WebSocket after the login."""


class Call(NamedTuple):
    """Who calls, with what."""

    account: Account
    headers: Mapping[str, str] = {}
    secret: str | None = None
    """A bearer token over HTTP, the password in a WebSocket's first frame."""


def over_both(place: Place, call: Call) -> Outcomes:
    """Call over HTTP, then over a WebSocket. Raise `AssertionError` if nobody answers."""
    fields = [*call.headers.items(), *([bearer(call.secret)] if call.secret else [])]
    answer = run_as(call.account, http_request, place.port, "GET", place.target, fields)
    auth = {"password": call.secret} if call.secret else None
    logging_in = partial(log_in, place.port, auth, headers=call.headers, requests=place.requests)
    return Outcomes(http_outcome(answer), websocket_outcome(run_as(call.account, logging_in)))
