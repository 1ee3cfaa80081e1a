"""Attempts to use a token that is bound to a unit from outside of it, with real cgroups and the kernel's word."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from gatepass.claims import Confirmation
from gatepass_gateway.refused import RefusedError
from gatepass_gateway.shares import Shares
from gatepass_gateway.trusted_proxy import Client
from support.gateway import TestGateway, bearer, login, running_gateway
from support.hierarchy import Hierarchy

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make cgroups")


@asynccontextmanager
async def reason_from(gateway: TestGateway, hierarchy: Hierarchy, cgroup: Path, token: str) -> AsyncIterator[str]:
    with hierarchy.inside(cgroup):
        connection = socket.create_connection(("127.0.0.1", gateway.port))
    async with gateway.websocket(sock=connection) as client:
        reply = await login(client, {"password": token})
        yield "in" if reply["ok"] else reply["error"]["details"]["authReason"]


@ROOT
@pytest.mark.root
@pytest.mark.parametrize(
    ("path", "outcome"),
    [
        ("UNIT", "in"),
        ("UNIT/worker", "in"),
        ("UNIT/worker/thread", "in"),
        ("UNIT.d", "gatepass_token_wrong_unit"),
        ("other.service/UNIT", "gatepass_token_wrong_unit"),
        (".", "gatepass_token_wrong_unit"),
    ],
)
async def test_a_token_of_a_unit_counts_in_its_cgroup_and_beneath(
    tmp_path: Path, hierarchy: Hierarchy, path: str, outcome: str
) -> None:
    unit = hierarchy.make("UNIT")
    async with running_gateway(tmp_path) as gateway:
        token = gateway.token(confirmation=Confirmation(os.geteuid(), unit.stat().st_ino))
        async with reason_from(gateway, hierarchy, hierarchy.make(path), token) as reason:
            assert reason == outcome


@ROOT
@pytest.mark.root
async def test_a_token_of_a_unit_that_was_started_again_counts_no_more(tmp_path: Path, hierarchy: Hierarchy) -> None:
    before = hierarchy.make("UNIT")
    bound = Confirmation(os.geteuid(), before.stat().st_ino)
    before.rmdir()
    async with running_gateway(tmp_path) as gateway:
        token = gateway.token(confirmation=bound)
        async with reason_from(gateway, hierarchy, hierarchy.make("UNIT"), token) as reason:
            assert reason == "gatepass_token_wrong_unit"
        assert (await gateway.get("/echo", bearer(token))).error["code"] == "gatepass_token_wrong_unit"


async def test_a_token_of_a_unit_does_not_count_where_the_kernel_tells_no_cgroup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatepass_gateway.sock_diag._cgroup", lambda _: None)
    async with running_gateway(tmp_path) as gateway:
        for cgroup in (0, 1):
            token = gateway.token(confirmation=Confirmation(os.geteuid(), cgroup))
            assert (await gateway.get("/echo", bearer(token))).error["code"] == "gatepass_token_wrong_unit"


def test_more_cgroups_give_a_user_no_larger_share() -> None:
    shares = Shares(per_uid=2, in_all=10)
    with ExitStack() as held:
        held.enter_context(shares.hold(Client(1000, cgroup=1)))
        held.enter_context(shares.hold(Client(1000, cgroup=2)))
        with pytest.raises(RefusedError):
            held.enter_context(shares.hold(Client(1000, cgroup=3)))
