"""Sessions: which of them a revocation means, and how they are described."""

from __future__ import annotations

import pytest

from gatepass.claims import Claims
from gatepass.revocations import Cut, Revocation, Standing
from gatepass.sessions import Session, record_from_wire, record_to_wire
from gatepass_gateway.sessions import Held, Sessions
from gatepass_gateway.trusted_proxy import Client, Identity
from support.gateway import Minter

CLAIMS = Minter().claims(issued_at=1_000, actors=("unit:a.service", "uid:7"), uid=7)
DEVICE = Session("id", "websocket", "device", None, 7, None, None, "", 1_000, "")


def is_cut_off(held: Held, by: Cut, value: str, until: int) -> bool:
    return held.is_cut_off_by(Standing(revocations=(Revocation(by, value, until),))) is not None


@pytest.mark.parametrize("claims", [CLAIMS, None], ids=["token", "device"])
async def test_a_revocation_means_what_began_up_to_its_moment(claims: Claims | None) -> None:
    held = Held(DEVICE, claims)
    for by, value in ((Cut.ALL, ""), (Cut.UID, "7")):
        assert is_cut_off(held, by, value, 1_000)
        assert not is_cut_off(held, by, value, 999)
    assert not is_cut_off(held, Cut.UID, "8", 1_000)


@pytest.mark.parametrize("by", [Cut.JTI, Cut.UNIT, Cut.IDENTITY])
@pytest.mark.parametrize("value", ["", "None", "a.service"])
async def test_what_is_not_known_of_a_devices_session_is_not_what_is_revoked(by: Cut, value: str) -> None:
    assert not is_cut_off(Held(DEVICE), by, value, 1_000)


async def test_what_is_no_session_is_never_cut_off() -> None:
    assert Held().is_cut_off_by(Standing(locked=True)) is None
    assert not is_cut_off(Held(), Cut.ALL, "", 2**40)


async def test_a_description_is_one_that_the_broker_takes_whatever_a_client_calls_itself() -> None:
    claims = CLAIMS._replace(token_id="x" * 1_000, subject="s" * 300, actors=("unit:" + "u" * 300,))
    identity = Identity("s", frozenset({"a" * 300, "b"}), claims, reconnects=True)
    for name in ("", "x" * 1_000, "\0\n\x1b[2J", "\ud800", "\u202e", "\N{PILE OF POO}" * 200):
        session = Sessions().new_session(
            "http", Client(7), identity, calls_itself=name, scopes=identity.scopes or frozenset()
        )
        assert record_from_wire(Session, record_to_wire(session)) == session
        assert session.login == "reconnect"
