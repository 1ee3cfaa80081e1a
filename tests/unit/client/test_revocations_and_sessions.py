"""What is cut off, and what gateways report: the values and their wire forms."""

from __future__ import annotations

from typing import Any

import pytest

from gatepass.claims import BootDeadline, Claims, Confirmation
from gatepass.errors import DeniedError, ErrorCode, ProtocolError, TokenError
from gatepass.revocations import Cut, Revocation, Standing, standing_from_wire, standing_to_wire
from gatepass.sessions import LeftBehind, Session, record_from_wire, record_to_wire

CLAIMS = Claims(
    issuer="gatepass:host",
    subject="derek@example.com",
    audience="openclaw",
    issued_at=1_000,
    expires_at=1_300,
    token_id="the-jti",
    scope=(),
    actors=("unit:user@1000.service/tui.scope", "uid:1000"),
    confirmation=Confirmation(1000),
    boot=BootDeadline("f" * 32, 300),
)
SESSION = Session("id", "websocket", "token", "derek@example.com", 1000, None, "the-jti", "operator.read", 1_000, "cli")
LEFT = LeftBehind(1_000, "cron job", "j1", "openclaw cron rm j1", "id", "derek@example.com", 1000, None, "the-jti")


@pytest.mark.parametrize(
    ("by", "value"),
    [
        (Cut.ALL, ""),
        (Cut.JTI, "the-jti"),
        (Cut.UID, "1000"),
        (Cut.IDENTITY, "derek@example.com"),
        (Cut.UNIT, "user@1000.service/tui.scope"),
        (Cut.UNIT, "user@1000.service"),
    ],
)
def test_a_revocation_covers_what_it_names_up_to_its_moment(by: Cut, value: str) -> None:
    assert Revocation(by, value, 1_000).covers(CLAIMS)
    assert not Revocation(by, value, 999).covers(CLAIMS)


@pytest.mark.parametrize(
    ("by", "value"),
    [
        (Cut.JTI, "the-jti2"),
        (Cut.UID, "100"),
        (Cut.UID, "None"),
        (Cut.IDENTITY, "derek@example.co"),
        (Cut.UNIT, "user@1000.servic"),
        (Cut.UNIT, "tui.scope"),
        (Cut.UNIT, "user@1000.service/tui"),
        (Cut.UNIT, ""),
    ],
)
def test_a_revocation_covers_nothing_else(by: Cut, value: str) -> None:
    assert not Revocation(by, value, 2_000).covers(CLAIMS)


def test_what_has_no_unit_is_in_no_unit() -> None:
    assert not Revocation(Cut.UNIT, "None", 2_000).covers(CLAIMS._replace(actors=("uid:1000",)))


def test_the_lock_comes_before_everything_else() -> None:
    with pytest.raises(DeniedError) as caught:
        Standing(True, (Revocation(Cut.ALL, "", 2_000),)).check(CLAIMS)
    assert caught.value.code is ErrorCode.LOCKED


def test_a_revoked_token_is_refused_and_another_is_not() -> None:
    standing = Standing(False, (Revocation(Cut.JTI, "another", 2_000), Revocation(Cut.UID, "1000", 1_000)))
    with pytest.raises(TokenError) as caught:
        standing.check(CLAIMS)
    assert caught.value.code is ErrorCode.TOKEN_REVOKED
    standing.check(CLAIMS._replace(issued_at=1_001))


def test_what_is_cut_off_comes_over_the_wire_as_it_was() -> None:
    standing = Standing(True, (Revocation(Cut.UNIT, "a.service", 7), Revocation(Cut.ALL, "", 9)))
    assert standing_from_wire(standing_to_wire(standing)) == standing


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"locked": False},
        {"revocations": []},
        {"locked": 0, "revocations": []},
        {"locked": False, "revocations": {}},
        {"locked": False, "revocations": [["jti", "x"]]},
        {"locked": False, "revocations": [["jti", "x", True]]},
        {"locked": False, "revocations": [["jti", "x", "1"]]},
        {"locked": False, "revocations": [["agent", "x", 1]]},
        {"locked": False, "revocations": [["jti", None, 1]]},
        {"locked": False, "revocations": ["jti"]},
    ],
)
def test_what_cannot_be_read_is_an_error_and_never_nothing_cut(result: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        standing_from_wire(result)


@pytest.mark.parametrize("record", [SESSION, LEFT])
def test_a_record_comes_over_the_wire_as_it_was(record: Session | LeftBehind) -> None:
    assert record_from_wire(type(record), record_to_wire(record)) == record


@pytest.mark.parametrize(
    "changes",
    [
        {"id": None},
        {"id": 1},
        {"since": "1"},
        {"since": True},
        {"uid": "0"},
        {"client": "x" * 257},
        {"client": "\x1b["},
    ],
)
def test_a_record_of_another_form_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        record_from_wire(Session, {**record_to_wire(SESSION), **changes})
    with pytest.raises(ProtocolError):
        record_from_wire(Session, {**record_to_wire(SESSION), "more": 1})
    with pytest.raises(ProtocolError):
        record_from_wire(Session, [])
