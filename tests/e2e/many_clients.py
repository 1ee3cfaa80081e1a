"""Clients of all kinds at once, for `run_as`: what they saw while a test stopped and killed what they talk to."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage
from websockets.sync.client import ClientConnection

from e2e.callers import SECONDS, bearer, call, connect_params, http_request, open_websocket

HTTP_CLIENTS = 6
SESSIONS = 4
PAUSE = 0.1
CUT = (OSError, EOFError, http.client.HTTPException, ConnectionClosed, InvalidHandshake, InvalidMessage)
"""How a connection ends when its other end is killed."""


@dataclass
class Seen:
    """What clients saw."""

    answers: Counter[str] = field(default_factory=Counter)
    """How often: HTTP requests by their status, what sessions did by its method, connections that were `cut`."""
    faults: list[str] = field(default_factory=list)
    """What nobody should see: wrong answers, and refusals."""
    slowest: float = 0.0
    """Seconds that a request, a login or a call took, however it ended."""

    def again_and_again(self, action: Callable[[], None], enough: Path) -> None:
        """Do something until there is enough, and once more; a connection may be cut meanwhile."""
        over = False
        while not over:
            over = enough.exists()
            try:
                action()
            except CUT as error:
                self.answers["refused" if isinstance(error, ConnectionRefusedError) else "cut"] += 1
            time.sleep(PAUSE)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Take the time of the block."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.slowest = max(self.slowest, time.monotonic() - started)


def many_clients(port: int, token: str, enough: Path) -> Seen:
    """Be many clients with one token until there is a file at `enough`, and one request more each."""
    seen = Seen()
    clients = [_ask] * HTTP_CLIENTS + [_be_connected] * SESSIONS
    threads = [threading.Thread(target=client, args=(seen, port, token, enough)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def _ask(seen: Seen, port: int, token: str, enough: Path) -> None:
    def once() -> None:
        with seen.timed():
            answer = http_request(port, "GET", "/v1/models", [bearer(token)])
        seen.answers[str(answer.status)] += 1
        if answer.status != 200 or answer.json["object"] != "list":
            seen.faults.append(f"{answer.status} {answer.text[:200]}")

    seen.again_and_again(once, enough)


def _be_connected(seen: Seen, port: int, token: str, enough: Path) -> None:
    """Log in with the same token whenever the session ends, as a client does that was started once."""

    def once() -> None:
        with seen.timed():
            websocket = open_websocket(port)
        with websocket:
            websocket.recv(SECONDS)
            _call(seen, websocket, "connect", connect_params({"password": token}))
            while not enough.exists():
                _call(seen, websocket, "health", {})
                time.sleep(PAUSE)

    seen.again_and_again(once, enough)


def _call(seen: Seen, websocket: ClientConnection, method: str, params: Mapping[str, Any]) -> None:
    with seen.timed():
        answer = call(websocket, method, params)
    seen.answers[method] += 1
    if not answer["ok"]:
        seen.faults.append(str(answer)[:300])
