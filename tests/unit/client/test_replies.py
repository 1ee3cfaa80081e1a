from __future__ import annotations

from typing import Any

import pytest

from gatepass.errors import ProtocolError
from gatepass.frames import Message
from gatepass.replies import GrantedTerms, KeyStatus, status_reply, verified_token, whoami_reply

WHOAMI: Message = {
    "caller": {
        "uid": 1000,
        "gid": 1000,
        "groups": [4, 27],
        "pid": 42,
        "unit": "tui.scope",
        "cgroup": "/user.slice/tui.scope",
    },
    "grant": {
        "identity": "derek@example.com",
        "audiences": ["openclaw"],
        "scope": "a b",
        "max_ttl": 600,
        "binding": "unit",
        "reconnect": 3600,
    },
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
    "locked": True,
    "gateways": 2,
}
NEW = {"locked", "gateways"}
"""Members that an older broker does not have: a client may be newer than the broker that still runs."""
VERIFIED: Message = {"claims": {"sub": "derek@example.com", "aud": "openclaw", "scope": "", "exp": 9, "jti": "x"}}
PARSERS: dict[str, tuple[Any, Message]] = {
    "whoami": (whoami_reply, WHOAMI),
    "status": (status_reply, STATUS),
    "verify": (verified_token, VERIFIED),
}


def test_whoami() -> None:
    seen = whoami_reply(WHOAMI)
    assert (seen.uid, seen.gid, seen.groups, seen.pid) == (1000, 1000, (4, 27), 42)
    assert (seen.unit, seen.cgroup) == ("tui.scope", "/user.slice/tui.scope")
    assert seen.grant == GrantedTerms("derek@example.com", ("openclaw",), "a b", 600, "unit", 3600)


def test_what_the_kernel_did_not_tell_and_no_rule_grants_is_none() -> None:
    caller: Message = {"uid": None, "gid": None, "groups": [], "pid": None}
    seen = whoami_reply({**WHOAMI, "caller": caller, "grant": None})
    assert (seen.uid, seen.pid, seen.grant) == (None, None, None)


def test_status() -> None:
    status = status_reply(STATUS)
    assert status.keys == (KeyStatus("k", 3, None),)
    assert (status.locked, status.gateways) == (True, 2)


def test_an_older_broker_binds_to_the_user_alone_and_is_never_locked() -> None:
    status = status_reply({name: value for name, value in STATUS.items() if name not in NEW})
    assert (status.locked, status.gateways) == (False, None)
    caller: Message = {"uid": 1, "gid": 1, "groups": [], "pid": 1}
    grant = {name: value for name, value in WHOAMI["grant"].items() if name not in ("binding", "reconnect")}
    seen = whoami_reply({**WHOAMI, "caller": caller, "grant": grant})
    assert (seen.unit, seen.cgroup) == (None, None)
    assert seen.grant == GrantedTerms("derek@example.com", ("openclaw",), "a b", 600, "uid", 0)


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
    if member not in ("grant", *NEW):
        with pytest.raises(ProtocolError):
            parse({key: value for key, value in result.items() if key != member})
