"""A scripted model server: what OpenClaw talks to instead of a model, so that a turn is the same every time.

It speaks the part of OpenAI's chat completions that OpenClaw's `openai-completions` provider uses: a POST whose answer
is a stream of server-sent events (https://platform.openai.com/docs/api-reference/chat-streaming). The scripted pieces
leave one by one with a pause between them, so that a test can tell a stream from a buffered answer by the clock.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

MODEL = "scripted"
PROVIDER = "scripted"


@dataclass(frozen=True, slots=True)
class Say:
    """A turn in which the model says something, piece by piece."""

    pieces: Sequence[str]
    pause: float = 0.0
    """Seconds between two pieces."""


@dataclass(frozen=True, slots=True)
class Call:
    """A turn in which the model calls a tool."""

    tool: str
    arguments: dict[str, Any]


Turn = Say | Call


@dataclass(slots=True)
class _Script:
    """The turns still to play; the last one repeats, since OpenClaw asks more often than a test expects."""

    turns: list[Turn]
    requests: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, request: dict[str, Any]) -> Turn:
        with self.lock:
            self.requests.append(request)
            return self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]


class ModelServer:
    """Plays the turns it is given, one for each request. Used as a context manager."""

    def __init__(self, *turns: Turn) -> None:
        self._script = _Script(list(turns) or [Say(["done"])])
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self._script))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> ModelServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def play(self, *turns: Turn) -> None:
        """Replace what is still to be played."""
        with self._script.lock:
            self._script.turns[:] = turns

    @property
    def requests(self) -> Sequence[dict[str, Any]]:
        """The bodies received so far."""
        return tuple(self._script.requests)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def openclaw_config(self) -> dict[str, Any]:
        """Return the top-level configuration keys that make this the model of every agent."""
        model = {"id": MODEL, "name": MODEL, "contextWindow": 128_000, "maxTokens": 4096, "input": ["text"]}
        provider = {
            "baseUrl": f"http://127.0.0.1:{self.port}/v1",
            "apiKey": "none",  # OpenClaw wants one; this server does not look at it
            "api": "openai-completions",
            "models": [model],
        }
        return {
            "models": {"providers": {PROVIDER: provider}},
            "agents": {"defaults": {"model": {"primary": f"{PROVIDER}/{MODEL}"}}},
        }


def _handler(script: _Script) -> type[BaseHTTPRequestHandler]:
    """Make the request handler class for one script; `http.server` wants a class, not an object."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers.get("content-length", "0"))))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")  # the end of the stream is the end of the connection
            self.end_headers()
            for event in _events(script.next(request)):
                self.wfile.write(f"data: {event}\n\n".encode())
                self.wfile.flush()
            self.close_connection = True

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Say nothing: a test's output is its own."""

    return Handler


def _events(turn: Turn) -> Iterator[str]:
    """Yield the payloads of the events that make up a turn."""
    if isinstance(turn, Say):
        for index, piece in enumerate(turn.pieces):
            if index:
                time.sleep(turn.pause)
            yield _chunk({"role": "assistant", "content": piece})
        yield _chunk({}, finish="stop")
    else:
        function = {"name": turn.tool, "arguments": json.dumps(turn.arguments)}
        call = {"index": 0, "id": "call_1", "type": "function", "function": function}
        yield _chunk({"role": "assistant", "tool_calls": [call]})
        yield _chunk({}, finish="tool_calls")
    yield "[DONE]"


def _chunk(delta: dict[str, Any], finish: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"id": "scripted", "object": "chat.completion.chunk", "created": 0, "model": MODEL, "choices": [choice]}
    return json.dumps(chunk)
