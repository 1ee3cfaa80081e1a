"""Who answers on a port: the gatepass proxy says so by itself, and everybody else is somebody else."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gatepass.openclaw_setup.answering import who_answers
from gatepass_gateway.answers import answer
from gatepass_gateway.no_token import no_token_error

OF_THE_PROXY = answer(no_token_error("gatepass-none.check.x")).body


@contextmanager
def answering(response: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A port where one request gets `response`, and what was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(4096))
                connection.sendall(response)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], asked
        thread.join()


def http(body: bytes) -> bytes:
    return b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (http(OF_THE_PROXY), "proxy"),
        (http(json.dumps({"error": {"message": "Unauthorized", "code": "unauthorized"}}).encode()), "other"),
        (http(b"<html>"), "other"),
        (http(b'{"error": []}'), "other"),
        (http(b"[" * 60_000), "other"),
        (b"SSH-2.0-somebody\r\n", "silent"),
        (b"", "silent"),
    ],
)
def test_the_proxy_is_known_by_its_answer(response: bytes, expected: str) -> None:
    with answering(response) as (port, asked):
        assert who_answers(port, 5) == expected
    assert b"Bearer gatepass-none.check." in asked[0]


def test_nobody_is_known_by_a_refusal() -> None:
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        assert who_answers(bound.getsockname()[1], 5) == "refused"


def test_one_who_says_nothing_is_not_waited_for_longer_than_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert who_answers(listener.getsockname()[1], 0.2) == "silent"
