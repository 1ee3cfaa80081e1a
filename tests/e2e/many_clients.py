"""Clients of all kinds at once, for `run_as`: what they saw while a test stopped and killed what they talk to."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from e2e.callers import bearer, call, connect_params, http_request, open_websocket

HTTP_CLIENTS = 6
SESSIONS = 4
CUT = (OSError, EOFError, http.client.HTTPException, ConnectionClosed, InvalidHandshake, InvalidMessage)
"""How a connection ends when its other end is killed."""


@dataclass
class Seen:
    """What clients saw."""

    answers: Counter[str] = field(default_factory=Counter)
    """Of HTTP requests by their status, of sessions (`login`, `call`), and connections that were cut (`cut`)."""
    faults: list[str] = field(default_factory=list)
    """What nobody should see: wrong answers, and refusals."""
    slowest: float = 0.0
    """Seconds that anything took."""

    def do(self, action: Callable[[], str]) -> bool:
        """Do something and count what came of it. Return whether the connection lasted."""
        started = time.monotonic()
        try:
            came = action()
        except CUT as error:
            came = "refused" if isinstance(error, ConnectionRefusedError) else "cut"
        self.slowest = max(self.slowest, time.monotonic() - started)
        self.answers[came] += 1
        return came not in ("cut", "refused")


def many_clients(port: int, token: str, enough: str, host: str = "127.0.0.1") -> Seen:
    """Be many clients with one token until there is a file at `enough`, and one request more each."""
    seen = Seen()
    clients = [_ask] * HTTP_CLIENTS + [_be_connected] * SESSIONS
    threads = [threading.Thread(target=client, args=(seen, port, token, Path(enough), host)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def _ask(seen: Seen, port: int, token: str, enough: Path, host: str) -> None:
    def once() -> str:
        answer = http_request(port, "GET", "/v1/models", [bearer(token)], host=host)
        if answer.status != 200 or answer.json["object"] != "list":
            seen.faults.append(f"{answer.status} {answer.text[:200]}")
        return str(answer.status)

    over = False
    while not over:
        over = enough.exists()
        seen.do(once)
        time.sleep(0.05)


def _be_connected(seen: Seen, port: int, token: str, enough: Path, host: str) -> None:
    """Log in with the same token whenever the session ends, as a client does that was started once."""
    over = False
    while not over:
        over = enough.exists()
        seen.do(lambda: _session(seen, port, token, enough, host))
        time.sleep(0.05)


def _session(seen: Seen, port: int, token: str, enough: Path, host: str) -> str:
    with open_websocket(port, host=host) as websocket:
        websocket.recv(10)
        hello = call(websocket, "connect", connect_params({"password": token}))
        if not hello["ok"]:
            seen.faults.append(json.dumps(hello)[:300])
            return "no login"
        seen.answers["login"] += 1
        while not enough.exists():
            answer = call(websocket, "health", {})
            if not answer["ok"]:
                seen.faults.append(json.dumps(answer)[:300])
            seen.answers["call"] += 1
            time.sleep(0.1)
    return "end"
