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
from gatepass.frames import Message
from gatepass.messages import (
    MAX_ID,
    MAX_TEXT,
    NO_ID,
    FollowRequest,
    InvalidRequestError,
    IssueRequest,
    Operation,
    Request,
    StatusRequest,
    VerifyRequest,
    WhoamiRequest,
    error_message,
    issued_token,
    ok_message,
    parse_reply,
    parse_request,
    request_message,
)
from gatepass.replies import status_reply, verified_token, whoami_reply

ids = st.integers(1, MAX_ID)
texts = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=MAX_TEXT)
anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["v", "id", "op", "ok", "error", "audience", "scope", "ttl", "token", "code", "message"])
maps = st.dictionaries(names | st.text(max_size=5), anything | st.just(1) | st.sampled_from(["issue", "verify"]))
operations: st.SearchStrategy[Operation] = st.one_of(
    st.builds(IssueRequest, st.none() | texts, st.none() | texts, st.none() | st.integers(1, MAX_ID)),
    st.builds(VerifyRequest, texts, st.none() | texts),
    st.sampled_from([WhoamiRequest(), StatusRequest(), FollowRequest()]),
)


@given(maps)
def test_any_map_is_a_request_or_a_declared_error(message: Message) -> None:
    with contextlib.suppress(ProtocolError, InvalidRequestError):
        parse_request(message)


@given(ids, operations)
def test_a_request_comes_back_as_it_was(request_id: int, operation: Operation) -> None:
    request = Request(request_id, operation)
    parsed = parse_request(request_message(request))
    assert parsed == request
    assert type(parsed.operation) is type(operation)


@given(ids, maps)
def test_any_map_is_a_reply_or_a_declared_error(request_id: int, message: Message) -> None:
    with contextlib.suppress(GatepassError):
        parse_reply(message, request_id)


@given(maps)
@pytest.mark.parametrize("parse", [issued_token, whoami_reply, status_reply, verified_token])
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
