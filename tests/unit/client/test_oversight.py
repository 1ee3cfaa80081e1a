from __future__ import annotations

from typing import Any

import pytest

from gatepass.errors import ProtocolError
from gatepass.frames import Message
from gatepass.oversight import (
    Enforced,
    Gateway,
    LeftBehindList,
    SessionAt,
    SessionList,
    enforced_reply,
    left_behind_reply,
    sessions_reply,
)
from gatepass.sessions import LeftBehind, Session

SESSION = Session("s", "websocket", "token", "derek@example.com", 1000, None, "j", "operator.read", 5, "tui")
ENTRY = LeftBehind(6, "device", "d", "openclaw devices remove d", "s", "derek@example.com", 1000, None, "j")
SESSIONS: Message = {
    "gateways": [{"name": "gw", "connected_since": 3, "seq": 4, "current": False}],
    "sessions": [{**{k: v for k, v in SESSION._asdict().items() if v is not None}, "gateway": "gw"}],
}
LEFT: Message = {"left_behind": [{k: v for k, v in ENTRY._asdict().items() if v is not None}]}
ENFORCED: Message = {"seq": 9, "gateways": 2, "acted": 1, "waiting": ["gw"], "ended": 3}
PARSERS: dict[str, tuple[Any, Message]] = {
    "sessions": (sessions_reply, SESSIONS),
    "left_behind": (left_behind_reply, LEFT),
    "revoke": (enforced_reply, ENFORCED),
}


def test_sessions() -> None:
    expected = SessionList((Gateway("gw", 3, 4, False),), (SessionAt("gw", SESSION),), 0)
    assert sessions_reply(SESSIONS) == expected
    assert sessions_reply({**SESSIONS, "more": 7}).more == 7


def test_what_sessions_left_behind() -> None:
    assert left_behind_reply(LEFT) == LeftBehindList((ENTRY,), 0)
    assert left_behind_reply({**LEFT, "more": 7}).more == 7


def test_how_far_a_change_got() -> None:
    assert enforced_reply(ENFORCED) == Enforced(9, 2, 1, ("gw",), 3)


@pytest.mark.parametrize("name", PARSERS)
def test_a_member_of_a_newer_broker_is_ignored(name: str) -> None:
    parse, result = PARSERS[name]
    assert parse({**result, "new": 1}) == parse(result)
    newer = {key: [{**item, "new": 1} for item in items] for key, items in result.items() if name != "revoke"}
    assert parse({**result, **newer}) == parse(result)


@pytest.mark.parametrize(
    ("name", "member"), [(name, member) for name, (_, result) in PARSERS.items() for member in result]
)
@pytest.mark.parametrize("wrong", [1.5, [1.5], {"a": 1}, None, [{}]], ids=repr)
def test_a_member_that_is_missing_or_wrong_breaks_the_protocol(name: str, member: str, wrong: object) -> None:
    parse, result = PARSERS[name]
    with pytest.raises(ProtocolError):
        parse({**result, member: wrong})
    with pytest.raises(ProtocolError):
        parse({key: value for key, value in result.items() if key != member})
