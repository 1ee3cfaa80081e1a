"""Reports: what is told, once, and in which parts."""

from __future__ import annotations

import math

from gatepass.frames import MAX_FRAME, encode_frame
from gatepass.messages import ReportRequest, Request, request_message
from gatepass.sessions import LeftBehind, Session, record_to_wire
from gatepass_gateway.reports import BRIEF_SECONDS, MOST, MOST_KEPT, Batch, Reports

WIDEST = "\N{PILE OF POO}" * 256


def session(number: int, kind: str = "websocket", text: str = "x") -> Session:
    return Session(str(number), kind, "token", text, 1, text, text, text, 2, text)


def left(number: int, text: str = "x") -> LeftBehind:
    return LeftBehind(number, "device", text, text, text, text, 1, text, text)


def test_a_session_that_opens_and_closes_between_two_reports_never_was() -> None:
    reports = Reports()
    reports.opened(session(1), 0)
    reports.closed("1")
    assert reports.due_at() == math.inf
    assert reports.take(0) == Batch()


def test_a_session_is_told_once_when_it_opens_and_once_when_it_closes() -> None:
    reports = Reports()
    reports.opened(session(1), 5)
    assert reports.due_at() == 5
    assert reports.take(5) == Batch((session(1),))
    assert reports.take(5) == Batch()
    reports.closed("1")
    assert reports.due_at() == -math.inf
    assert reports.take(5) == Batch(closed=("1",))
    assert reports.due_at() == math.inf


def test_an_exchange_is_told_when_it_has_lasted() -> None:
    reports = Reports()
    reports.opened(session(1, "http"), 5)
    assert reports.due_at() == 5 + BRIEF_SECONDS
    assert reports.take(5) == Batch()
    assert reports.take(5 + BRIEF_SECONDS) == Batch((session(1, "http"),))


def test_a_new_broker_is_told_of_what_is_open_and_of_what_the_old_one_did_not_confirm() -> None:
    reports = Reports()
    for number in (1, 2):
        reports.opened(session(number), 0)
    reports.left_behind(left(1))
    reports.left_behind(left(2))
    first = reports.take(0)
    reports.closed("1")
    reports.start_anew([session(2)], 0)
    assert reports.take(0) == Batch((session(2),), (), first.left_behind)
    reports.left_behind(left(3))
    reports.confirm(first)
    assert reports.take(0) == Batch(left_behind=(left(3),))


def test_whatever_is_told_fits_into_frames() -> None:
    reports, told = Reports(), Batch()
    for number in range(250):
        reports.opened(session(number, text=WIDEST if number % 2 else "x"), 0)
        reports.left_behind(left(number, WIDEST if number % 2 else "x"))
    while reports.due_at() < math.inf:
        batch = reports.take(0)
        reports.confirm(batch)
        assert max(map(len, batch)) <= MOST
        sessions, traces = map(record_to_wire, batch.opened), map(record_to_wire, batch.left_behind)
        report = ReportRequest(1, tuple(sessions), ("x" * 22,) * MOST, tuple(traces))
        assert len(encode_frame(request_message(Request(2, report)))) <= MAX_FRAME
        told = Batch(told.opened + batch.opened, (), told.left_behind + batch.left_behind)
    assert len(told.opened) == len(told.left_behind) == 250


def test_without_a_broker_the_oldest_is_forgotten() -> None:
    reports = Reports()
    kept = [reports.left_behind(left(number)) for number in range(MOST_KEPT + 1)]
    assert kept == [*[True] * MOST_KEPT, False]
    assert reports.take(0).left_behind[0] == left(1)
