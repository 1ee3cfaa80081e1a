from __future__ import annotations

from typing import Any

import pytest

from gatepass.errors import ProtocolError
from gatepass.frames import Message
from gatepass.replies import GrantedTerms, KeyStatus, status_reply, verified_token, whoami_reply

WHOAMI: Message = {
    "caller": {"uid": 1000, "gid": 1000, "groups": [4, 27], "pid": 42},
    "grant": {"identity": "derek@example.com", "audiences": ["openclaw"], "scope": "a b", "max_ttl": 600},
    "issuer": "gatepass:host",
}
STATUS: Message = {
    "version": "1.0",
    "issuer": "gatepass:host",
    "state": "running",
    "started": 1,
    "uptime": 2,
    "keys": [{"kid": "k", "signs_until": 3, "published_until": None}],
    "issued": 4,
    "refused": 5,
    "connections": 6,
    "configured": 7,
}
VERIFIED: Message = {"claims": {"sub": "derek@example.com", "aud": "openclaw", "scope": "", "exp": 9, "jti": "x"}}
PARSERS: dict[str, tuple[Any, Message]] = {
    "whoami": (whoami_reply, WHOAMI),
    "status": (status_reply, STATUS),
    "verify": (verified_token, VERIFIED),
}


def test_whoami() -> None:
    seen = whoami_reply(WHOAMI)
    assert (seen.uid, seen.gid, seen.groups, seen.pid) == (1000, 1000, (4, 27), 42)
    assert seen.grant == GrantedTerms("derek@example.com", ("openclaw",), "a b", 600)


def test_what_the_kernel_did_not_tell_and_no_rule_grants_is_none() -> None:
    caller: Message = {"uid": None, "gid": None, "groups": [], "pid": None}
    seen = whoami_reply({**WHOAMI, "caller": caller, "grant": None})
    assert (seen.uid, seen.pid, seen.grant) == (None, None, None)


def test_status() -> None:
    assert status_reply(STATUS).keys == (KeyStatus("k", 3, None),)


def test_verify_keeps_the_whole_claims_set() -> None:
    assert verified_token(VERIFIED).claims["jti"] == "x"


@pytest.mark.parametrize("name", PARSERS)
def test_a_member_of_a_newer_broker_is_ignored(name: str) -> None:
    parse, result = PARSERS[name]
    assert parse({**result, "new": 1}) == parse(result)


@pytest.mark.parametrize(
    ("name", "member"), [(name, member) for name, (_, result) in PARSERS.items() for member in result]
)
@pytest.mark.parametrize("wrong", [1.5, [1.5], {"a": 1}], ids=repr)
def test_a_member_that_is_missing_or_wrong_breaks_the_protocol(name: str, member: str, wrong: object) -> None:
    parse, result = PARSERS[name]
    with pytest.raises(ProtocolError):
        parse({**result, member: wrong})
    if member != "grant":
        with pytest.raises(ProtocolError):
            parse({key: value for key, value in result.items() if key != member})
