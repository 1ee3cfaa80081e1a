"""Who follows, and how far they have got."""

from __future__ import annotations

import pytest

from gatepass.errors import DeniedError, ProtocolError
from gatepass.frames import MAX_FRAME, encode_frame
from gatepass.messages import ReportRequest
from gatepass.sessions import LeftBehind, Session, record_to_wire
from gatepass_broker.followers import MAX_SESSIONS, Followers, left_behind_to_wire, sessions_to_wire


def session(number: int) -> dict[str, object]:
    return record_to_wire(Session(f"s{number}", "websocket", "token", "d@e", 1000, None, "j", "", 1, "x" * 200))


def followers(*names: str) -> Followers:
    result = Followers()
    for name in names:
        result.add(name, name, 5)
    return result


def test_a_change_is_awaited_from_those_who_are_there_and_from_nobody_else() -> None:
    some = followers("a", "b")
    progress = some.progress(7)
    some.add("late", "late", 6)
    some.read("a", ReportRequest(7))
    assert some.is_awaited(progress)
    some.read("b", ReportRequest(6))
    assert some.is_awaited(progress)
    some.read("b", ReportRequest(8))
    assert not some.is_awaited(progress)
    assert some.outcome(progress) == {"seq": 7, "gateways": 2, "acted": 2, "waiting": [], "ended": 0}


def test_who_is_gone_is_not_awaited_and_has_not_acted() -> None:
    some = followers("a", "b")
    some.read("b", ReportRequest(1, (session(1),)))
    progress = some.progress(7)
    some.read("a", ReportRequest(7))
    some.remove("b")
    assert not some.is_awaited(progress)
    assert some.outcome(progress) == {"seq": 7, "gateways": 2, "acted": 1, "waiting": ["b"], "ended": 0}


def test_only_what_a_follower_has_reported_as_ended_counts_as_ended() -> None:
    some = followers("a")
    some.read("a", ReportRequest(1, (session(1), session(2), session(3))))
    progress = some.progress(2)
    some.read("a", ReportRequest(1, closed=("s1", "unknown")))
    some.read("a", ReportRequest(2, (session(4),), ("s2",)))
    assert some.outcome(progress)["ended"] == 2
    assert [entry["id"] for entry in sessions_to_wire(some, 2)["sessions"]] == ["s3", "s4"]


def test_a_number_never_goes_back() -> None:
    some = followers("a")
    some.read("a", ReportRequest(9))
    some.read("a", ReportRequest(3))
    assert not some.is_awaited(some.progress(9))


def test_who_does_not_follow_reports_nothing() -> None:
    with pytest.raises(DeniedError):
        followers("a").read("b", ReportRequest(1))


def test_sessions_are_bounded_and_checked() -> None:
    some = followers("a")
    some.read("a", ReportRequest(1, tuple(map(session, range(MAX_SESSIONS)))))
    with pytest.raises(ProtocolError):
        some.read("a", ReportRequest(1, (session(MAX_SESSIONS),)))
    with pytest.raises(ProtocolError):
        some.read("a", ReportRequest(1, ({"id": "x"},)))


def test_an_answer_fits_into_a_frame_and_says_how_much_does_not() -> None:
    some = followers("a")
    some.read("a", ReportRequest(1, tuple(map(session, range(1_000)))))
    answer = sessions_to_wire(some, 1)
    assert len(encode_frame({"id": 1, "ok": True, **answer})) < MAX_FRAME
    assert len(answer["sessions"]) + answer["more"] == 1_000
    assert answer["more"] > 0
    records = [LeftBehind(n, "device", "ü" * 250, "r", "s", None, None, None, None) for n in range(500)]
    left = left_behind_to_wire(records)
    assert len(encode_frame({"id": 1, "ok": True, **left})) < MAX_FRAME
    assert left["left_behind"][0]["time"] == 499


def test_a_name_for_people_is_kept_short() -> None:
    some = followers()
    some.add("c", "n" * 500, 5)
    some.add("d", None, 5)
    assert [entry["name"] for entry in sessions_to_wire(some, 1)["gateways"]] == ["n" * 64, "a gateway"]
