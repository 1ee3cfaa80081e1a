from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatepass.errors import (
    DeniedError,
    ErrorCode,
    GatepassError,
    ProtocolError,
    TokenError,
    TryLaterError,
    error_from_wire,
)
from gatepass.explanation import explanation_reply
from gatepass.frames import FrameDecoder, Message, encode_frame
from gatepass.messages import (
    MAX_ID,
    MAX_TEXT,
    NO_ID,
    OPERATIONS,
    Binding,
    ExplainRequest,
    FollowRequest,
    InvalidRequestError,
    IssueRequest,
    LeftBehindRequest,
    LockRequest,
    Operation,
    ReportRequest,
    Request,
    RevokeRequest,
    SessionsRequest,
    StatusRequest,
    UnlockRequest,
    VerifyRequest,
    WhoamiRequest,
    error_message,
    issued_token,
    ok_message,
    parse_reply,
    parse_request,
    request_message,
)
from gatepass.oversight import enforced_reply, left_behind_reply, sessions_reply
from gatepass.replies import status_reply, verified_token, whoami_reply
from gatepass.revocations import Cut
from gatepass.sessions import LeftBehind, Session, record_from_wire, record_to_wire

ids = st.integers(1, MAX_ID)
texts = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=MAX_TEXT)
anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
parameters = sorted({name for kind in OPERATIONS.values() for name in kind._fields})
names = st.sampled_from(["v", "id", "op", "ok", "error", "code", "message", *parameters])
maps = st.dictionaries(names | st.text(max_size=5), anything | st.just(1) | st.sampled_from(list(OPERATIONS)))
short = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20)
seconds = st.integers(0, 2**53)
kernel_ids = st.none() | st.integers(0, MAX_ID)
wanted = (
    st.none() | texts,
    st.none() | texts,
    st.none() | st.integers(1, MAX_ID),
    st.none() | st.sampled_from(Binding).map(str),
)
sessions = st.builds(
    Session,
    *(short, short, short),
    identity=st.none() | short,
    uid=kernel_ids,
    unit=st.none() | short,
    jti=st.none() | short,
    scope=short,
    since=seconds,
    client=short,
)
left_behind = st.builds(
    LeftBehind,
    seconds,
    *(short, short, short, short),
    identity=st.none() | short,
    uid=kernel_ids,
    unit=st.none() | short,
    jti=st.none() | short,
)
operations: st.SearchStrategy[Operation] = st.one_of(
    st.builds(IssueRequest, *wanted),
    st.builds(
        ExplainRequest,
        *wanted,
        pid=st.none() | st.integers(1, 2**31 - 1),
        uid=kernel_ids,
        gid=kernel_ids,
        groups=st.none() | st.lists(st.integers(0, MAX_ID), max_size=5).map(tuple),
    ),
    st.builds(VerifyRequest, texts, st.none() | texts),
    st.builds(FollowRequest, st.none() | texts),
    st.builds(
        ReportRequest,
        seconds,
        st.lists(sessions.map(record_to_wire), max_size=3).map(tuple),
        st.lists(short, max_size=3).map(tuple),
        st.lists(left_behind.map(record_to_wire), max_size=3).map(tuple),
    ),
    st.builds(RevokeRequest, st.sampled_from(Cut).map(str), texts),
    st.sampled_from(
        [
            WhoamiRequest(),
            StatusRequest(),
            FollowRequest(),
            SessionsRequest(),
            LeftBehindRequest(),
            LockRequest(),
            UnlockRequest(),
        ]
    ),
)


@given(maps)
def test_any_map_is_a_request_or_a_declared_error(message: Message) -> None:
    with contextlib.suppress(ProtocolError, InvalidRequestError):
        parse_request(message)


@given(ids, operations)
def test_a_request_comes_back_from_the_wire_as_it_was(request_id: int, operation: Operation) -> None:
    request = Request(request_id, operation)
    parsed = parse_request(over_the_wire(request_message(request)))
    assert parsed == request
    assert type(parsed.operation) is type(operation)


def over_the_wire(message: Message) -> Message:
    decoder = FrameDecoder()
    decoder.feed(encode_frame(message))
    received = decoder.next_message()
    assert received is not None
    return received


GOOD: dict[str, st.SearchStrategy[Any]] = {
    "ttl": st.integers(1, MAX_ID),
    "binding": st.sampled_from(["uid", "unit", "process"]),
    "pid": st.integers(1, 2**31 - 1),
    "uid": st.integers(0, MAX_ID),
    "gid": st.integers(0, MAX_ID),
    "groups": st.lists(st.integers(0, MAX_ID), max_size=3),
    "seq": seconds,
    "opened": st.lists(st.dictionaries(short, anything, max_size=2), max_size=3),
    "closed": st.lists(short, max_size=3),
    "left_behind": st.lists(st.dictionaries(short, anything, max_size=2), max_size=3),
}
"""What each parameter that is not text may be."""
WRONG: dict[str, list[Any]] = {
    "ttl": [0, -1, True, "60", 2**32, [60]],
    "binding": ["", "UID", "user", 1, ["uid"], True],
    "pid": [0, -1, True, "1", 2**31],
    "uid": [-1, True, "0", 2**32],
    "gid": [-1, False, "0", 2**32],
    "groups": [1, "1", [True], [-1], ["1"], [None], {"0": 1}],
    "seq": [-1, True, "1", 2**53 + 1],
    "opened": ["", {}, [1], [[]], [None]],
    "closed": ["x", [1], [None], ["\n"], [["x"]]],
    "left_behind": ["", {}, [1], [[]], [None]],
    "audience": [1, True, ["x"], {}, "\n", "x" * (MAX_TEXT + 1)],
    "by": [1, None, ["jti"], "\x1b"],
    "value": [1, ["x"], "\x7f"],
    "name": [1, ["x"], "\u202e"],
    "token": [1, None, "\0"],
    "scope": [1, ["x"], "\t"],
}
OWNERS = [(op, name) for op, kind in OPERATIONS.items() for name in kind._fields]


def test_every_parameter_is_judged_here() -> None:
    assert {name for _, name in OWNERS} == WRONG.keys()


@pytest.mark.parametrize(("op", "name"), OWNERS, ids=map("-".join, OWNERS))
def test_a_parameter_of_another_form_is_refused_by_its_name(op: str, name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(InvalidRequestError, match=f"'{name}' must be"):
            parse_request({"v": 1, "id": 7, "op": op, name: value})


@pytest.mark.parametrize(("op", "name"), [owner for owner in OWNERS if owner[1] in GOOD], ids=str)
@given(data=st.data())
def test_a_parameter_of_its_form_is_taken(op: str, name: str, data: st.DataObject) -> None:
    needed: Message = {field: 0 for field in ("seq",) if op == "report"}
    operation = parse_request({"v": 1, "id": 7, "op": op, **needed, name: data.draw(GOOD[name])}).operation
    assert isinstance(getattr(operation, name), int | str | tuple)


@given(sessions | left_behind)
def test_a_record_comes_back_as_it_was(record: Session | LeftBehind) -> None:
    kind: Any = type(record)
    assert record_from_wire(kind, over_the_wire(record_to_wire(record))) == record


@given(ids, maps)
def test_any_map_is_a_reply_or_a_declared_error(request_id: int, message: Message) -> None:
    with contextlib.suppress(GatepassError):
        parse_reply(message, request_id)


@given(maps)
@pytest.mark.parametrize(
    "parse",
    [
        issued_token,
        whoami_reply,
        status_reply,
        verified_token,
        explanation_reply,
        sessions_reply,
        left_behind_reply,
        enforced_reply,
    ],
)
def test_any_result_is_read_or_breaks_the_protocol(parse: Any, result: Message) -> None:
    with contextlib.suppress(ProtocolError):
        parse(result)


@given(ids, st.dictionaries(st.text().filter(lambda name: name not in ("id", "ok")), anything, max_size=4))
def test_a_result_comes_back_as_it_was(request_id: int, result: Message) -> None:
    assert parse_reply(ok_message(request_id, result), request_id) == result


@given(ids, ids, st.just({}))
def test_the_reply_to_another_request_is_none(request_id: int, other: int, result: Message) -> None:
    if request_id != other:
        with pytest.raises(ProtocolError):
            parse_reply(ok_message(other, result), request_id)


@given(ids, st.sampled_from(ErrorCode), st.text(), st.none() | st.integers(0, MAX_ID))
def test_an_error_keeps_its_code_and_its_words(
    request_id: int, code: ErrorCode, message: str, retry_after: int | None
) -> None:
    sent = error_from_wire(code, message, retry_after)
    with pytest.raises(type(sent)) as caught:
        parse_reply(error_message(request_id, sent), request_id)
    assert (caught.value.code, caught.value.message) == (code, message)
    assert caught.value.retry_after == sent.retry_after


@given(st.text().filter(lambda code: code not in list(ErrorCode)))
def test_a_code_of_a_newer_broker_is_neither_denied_nor_a_token_fault(code: str) -> None:
    error = error_from_wire(code, "because")
    assert type(error) is GatepassError
    assert not isinstance(error, DeniedError | TokenError)


def test_an_error_that_concerns_the_whole_connection_reaches_whoever_asked() -> None:
    full = TryLaterError(ErrorCode.UNAVAILABLE, "too many connections", retry_after=1)
    with pytest.raises(TryLaterError) as caught:
        parse_reply(error_message(NO_ID, full), 7)
    assert caught.value.retry_after == 1
    with pytest.raises(ProtocolError):
        parse_reply(ok_message(NO_ID, {}), 7)
