"""What a session leaves behind: which requests and answers count."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gatepass_gateway.left_behind import Trace, Watch

JOB = Trace("cron job", "j", "openclaw cron rm j")


def request(method: Any = "cron.add", request_id: Any = "1") -> bytes:
    return json.dumps({"type": "req", "id": request_id, "method": method}).encode()


def answer(payload: Any, request_id: Any = "1", **changes: Any) -> bytes:
    return json.dumps({"type": "res", "id": request_id, "ok": True, "payload": payload, **changes}).encode()


def test_an_answer_counts_once_and_only_to_what_was_asked() -> None:
    watch = Watch()
    assert not watch.awaits_answer
    assert watch.answer(answer({"id": "j"})) is None
    assert watch.request(request())
    assert watch.awaits_answer
    assert watch.answer(answer({"id": "j"}, "2")) is None
    assert watch.answer(answer({"id": "j"})) == JOB
    assert not watch.awaits_answer
    assert watch.answer(answer({"id": "j"})) is None


@pytest.mark.parametrize(
    "message",
    [
        request("cron.list"),
        request("cron.added"),
        request(1),
        request(["cron.add"]),
        request(request_id=1),
        b'"cron.add"',
        b"[]",
    ],
)
def test_other_requests_wait_for_nothing(message: bytes) -> None:
    watch = Watch()
    assert watch.request(message)
    assert not watch.awaits_answer


@pytest.mark.parametrize("message", [b"cron.add", b'{"method":"cron.add"', b"\\u00", b"\xff\\u00" * 10])
def test_what_is_no_json_is_said_to_be_unread(message: bytes) -> None:
    assert not Watch().request(message)


@pytest.mark.parametrize(
    "message",
    [
        answer({"id": "j"}, ok=1),
        answer({"id": 1}),
        answer({"id": ""}),
        answer({}),
        answer({"job": "x", "id": "j"}),
        answer(["id"]),
        answer({"id": "j"}, request_id=1),
        answer({"id": "j"})[:-1],
        b'"res"',
        b'["res"]',
    ],
)
def test_an_answer_that_does_not_fit_leaves_the_request_open(message: bytes) -> None:
    watch = Watch()
    watch.request(request())
    assert watch.answer(message) is None
    assert watch.awaits_answer


def test_a_no_ends_the_wait_unless_the_id_stands_for_requests_of_several_kinds() -> None:
    watch = Watch()
    watch.request(request())
    watch.answer(answer({}, ok=False))
    assert not watch.awaits_answer
    watch.request(request("device.token.rotate"))
    watch.request(request())
    watch.answer(answer({}, ok=False))
    assert watch.answer(answer({"id": "j"})) is not None


def test_an_id_of_any_length_takes_no_more_memory_than_another() -> None:
    watch = Watch()
    watch.request(request(request_id="x" * 200_000))
    assert sum(map(len, watch._pending)) < 100
    assert watch.answer(answer({"id": "j"}, request_id="x" * 200_000)) is not None


def test_a_request_that_is_not_followed_any_more_is_said_to_be_unread() -> None:
    watch = Watch()
    assert all(watch.request(request(request_id=str(number))) for number in range(1_024))
    assert not watch.request(request(request_id="one more"))
    assert watch.answer(answer({"id": "j"}, request_id="0")) is not None


def test_no_number_of_requests_takes_memory_without_end() -> None:
    watch = Watch()
    for number in range(3_000):
        watch.request(request(request_id=str(number)))
        watch.request(request(request_id="same"))
    assert len(watch._pending) <= 1_024
    assert sum(map(len, watch._pending.values())) <= 2_048
