"""Live sessions: reported to the broker, ended by it, ended with their process; and the broker's absence."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import h11
import pytest
from websockets.asyncio.client import ClientConnection

from gatepass.claims import Confirmation
from gatepass.errors import TryLaterError
from gatepass.revocations import Cut
from gatepass_gateway import followed_broker, reports
from gatepass_gateway.followed_broker import FollowedBroker
from support.broker import SteppedClock
from support.fake_broker import running_followed
from support.gateway import (
    TestGateway,
    a_process,
    bearer,
    eventually,
    http_client,
    login,
    messages_until_close,
    process_of,
    running_gateway,
)
from support.upstream import USER, USER_HEADER

OWN_UID = os.geteuid()
DEVICE_LOGIN: dict[str, Any] = {"auth": {"deviceToken": "from a pairing"}, "device": {"id": "d"}}


async def closing(client: ClientConnection) -> tuple[int | None, str | None]:
    """Wait until a client is closed and return the code and the reason of the close frame."""
    await messages_until_close(client)
    return client.close_code, client.close_reason


async def refused(gateway: TestGateway, secret: str | None = None, **params: Any) -> str:
    """Return the reason with which a login is refused."""
    auth = params.pop("auth", {"password": secret or gateway.token()})
    async with gateway.websocket() as client:
        reply = await login(client, auth, **params)
        assert not reply["ok"], reply
        await messages_until_close(client)
        reason: str = reply["error"]["details"]["authReason"]
        return reason


async def test_a_session_is_reported_while_it_is_open(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker):
        token = gateway.token(actors=("unit:openclaw.service", "uid:1"), token_id="the-jti")
        async with gateway.login(token):
            await broker.has_sessions(1)
            (session,) = broker.sessions.values()
            assert broker.names == [f"gatepass-gateway on {gateway.port}"]
            assert (session.kind, session.login, session.identity) == ("websocket", "token", USER)
            assert (session.uid, session.unit, session.jti) == (OWN_UID, "openclaw.service", "the-jti")
            assert (session.scope, session.client) == ("operator.read operator.write", "cli")
        await broker.has_sessions(0)


async def test_all_open_sessions_are_reported_to_a_broker_that_comes_back(tmp_path: Path) -> None:
    async with running_followed(tmp_path, upstream=None) as (gateway, broker):
        async with gateway.login(), gateway.login():
            await broker.has_sessions(2)
            known = set(broker.sessions)
            broker.drop()
            await eventually(lambda: len(broker.names) == 2 and set(broker.sessions) == known)
        await broker.has_sessions(0)


async def test_many_sessions_are_reported_in_parts_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MOST", 10)
    name = {"id": "x", "displayName": "\N{PILE OF POO}" * 300, "version": "1", "platform": "linux", "mode": "cli"}
    async with running_followed(tmp_path) as (gateway, broker), AsyncExitStack() as clients:
        for _ in range(25):
            await clients.enter_async_context(gateway.login(client=name))
        await broker.has_sessions(25)
        broker.reports.clear()
        broker.drop()
        await eventually(lambda: len(broker.names) == 2 and len(broker.sessions) == 25)
        assert [len(report["opened"]) for report in broker.reports if report["opened"]] == [10, 10, 5]


async def test_a_change_is_confirmed_after_the_last_session_that_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "MOST", 2)
    async with running_followed(tmp_path) as (gateway, broker), AsyncExitStack() as clients:
        for _ in range(7):
            await clients.enter_async_context(gateway.login())
        await broker.has_sessions(7)
        await broker.revoke(Cut.ALL)
        assert len(broker.closed_by(broker.seq)) == 7


@pytest.mark.parametrize(
    ("by", "value"),
    [
        (Cut.ALL, ""),
        (Cut.UID, str(OWN_UID)),
        (Cut.IDENTITY, USER),
        (Cut.JTI, "the-jti"),
        (Cut.UNIT, "openclaw.service"),
    ],
)
async def test_a_revocation_ends_what_it_means_with_a_reason_at_both_ends(tmp_path: Path, by: Cut, value: str) -> None:
    async with running_followed(tmp_path) as (gateway, broker):
        token = gateway.token(actors=("unit:openclaw.service", "uid:1"), token_id="the-jti")
        async with gateway.login(token) as client:
            await broker.revoke(by, value)
            behind = gateway.upstream.sessions[1]
            assert await closing(client) == (
                1008,
                "gatepass: the token was revoked by an administrator; ask the broker for a new one",
            )
            await eventually(behind.ended.is_set)
            assert (behind.close_code, behind.close_reason) == (client.close_code, client.close_reason)
        assert await refused(gateway, token) == "gatepass_token_revoked"
        answer = await gateway.get("/echo", bearer(token))
        assert (answer.status, answer.error["code"]) == (401, "gatepass_token_revoked")


@pytest.mark.parametrize(
    ("by", "value"),
    [(Cut.UID, "77"), (Cut.IDENTITY, "mallory@example.com"), (Cut.JTI, "other"), (Cut.UNIT, "other.service")],
)
async def test_a_revocation_ends_nothing_else(tmp_path: Path, by: Cut, value: str) -> None:
    async with running_followed(tmp_path) as (gateway, broker), gateway.login() as client:
        await broker.revoke(by, value)
        await broker.revoke(Cut.ALL, issued_until=1)
        await client.send("still here")
        assert await client.recv() == "still here"


async def test_the_lock_ends_sessions_and_keeps_everybody_local_out_until_it_is_off(tmp_path: Path) -> None:
    async with running_followed(tmp_path, device_logins={"users": [OWN_UID]}) as (gateway, broker):
        async with gateway.login() as by_token, gateway.websocket() as by_device:
            assert (await login(by_device, **DEVICE_LOGIN))["ok"]
            await broker.has_sessions(2)
            assert {session.login for session in broker.sessions.values()} == {"token", "device"}
            await broker.lock()
            await broker.has_sessions(0)
            for client in (by_token, by_device):
                code, reason = await closing(client)
                assert code == 1008
                assert reason is not None
                assert reason.startswith("gatepass: an administrator has locked gatepass")
        credentials: list[dict[str, Any]] = [
            *({"password": gateway.token()}, {"password": gateway.token(age=1_000)}, {"token": "x"}),
            *({"deviceToken": "x"}, {"bootstrapToken": "x"}, {"password": "of the gateway"}, {"other": 1}),
        ]
        for auth in credentials:
            assert await refused(gateway, auth=auth, device={"id": "d"}) == "gatepass_locked"
        assert (await gateway.get("/echo", bearer(gateway.token()))).error["code"] == "gatepass_locked"
        assert (await gateway.get("/echo", bearer("the gateway's own"))).error["code"] == "gatepass_locked"

        await broker.unlock()
        async with gateway.login(), gateway.websocket() as again:
            assert (await login(again, **DEVICE_LOGIN))["ok"]


async def test_under_lock_probes_and_nodes_pass_and_nodes_stay(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), gateway.websocket() as node:
        assert (await login(node, {"token": "n"}, role="node", device={"id": "d"}))["ok"]
        await broker.lock()
        await node.send("still here")
        assert await node.recv() == "still here"
        async with gateway.websocket() as probe:
            assert (await login(probe, None))["error"]["code"] == "NOT_PAIRED"
        assert (await gateway.get("/echo")).status == 200
        async with gateway.websocket() as another:
            assert (await login(another, {"token": "n"}, role="node", device={"id": "d"}))["ok"]


async def test_remote_users_are_touched_by_neither(tmp_path: Path) -> None:
    proxy: dict[str, Any] = {"reverse_proxy": [{"user": OWN_UID}]}
    headers = {USER_HEADER: USER, "X-Forwarded-For": "9.9.9.9"}
    async with (
        running_followed(tmp_path, **proxy) as (gateway, broker),
        gateway.websocket(additional_headers=headers) as client,
    ):
        assert (await login(client, {}))["ok"]
        await broker.revoke(Cut.ALL)
        await broker.lock()
        await client.send("still here")
        assert await client.recv() == "still here"
        async with gateway.websocket(additional_headers=headers) as another:
            assert (await login(another, {}))["ok"]


async def test_an_answer_without_end_is_cut_off(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), http_client(gateway.port) as client:
        await client.start("GET", "/events", bearer(gateway.token()))
        await client.send(h11.EndOfMessage())
        gateway.upstream.step.release()
        await client.next_event()
        await client.next_event()
        await broker.has_sessions(1)
        (session,) = broker.sessions.values()
        assert (session.kind, session.login) == ("http", "token")
        await broker.revoke(Cut.ALL)
        await eventually(lambda: gateway.upstream.hangups)
        with pytest.raises((h11.RemoteProtocolError, anyio.BrokenResourceError)):
            await client.next_event()


async def test_short_exchanges_are_not_reported(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker):
        for _ in range(5):
            assert (await gateway.get("/echo", bearer(gateway.token()))).status == 200
        async with gateway.login():
            await broker.has_sessions(1)
        await broker.has_sessions(0)
        assert [session.kind for session in broker.ever.values()] == ["websocket"]


async def test_a_process_bound_session_ends_with_its_process(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker):
        with a_process() as process:
            token = gateway.token(confirmation=Confirmation(OWN_UID, None, process_of(process.pid)))
            async with gateway.login(token) as client:
                await client.send("here")
                assert await client.recv() == "here"
                process.kill()
                assert (await closing(client))[0] == 1008
                assert "process" in str(client.close_reason)
            assert await refused(gateway, token) == "gatepass_token_process_ended"
        assert (await gateway.get("/echo", bearer(token))).error["code"] == "gatepass_token_process_ended"
        await broker.has_sessions(0)


async def test_without_a_word_from_the_broker_nobody_logs_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed_broker, "_REFRESH_SECONDS", 0.05)
    keys = {"broker_socket": str(tmp_path / "none.sock")}
    async with running_gateway(tmp_path, device_logins={"users": [OWN_UID]}, keys=keys) as gateway:
        assert await refused(gateway) == "gatepass_unavailable"
        assert await refused(gateway, **DEVICE_LOGIN) == "gatepass_unavailable"


async def test_the_broker_may_be_away_for_a_time_and_then_nobody_logs_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed_broker, "_REFRESH_SECONDS", 0.3)
    clock = SteppedClock()
    changes: dict[str, Any] = {"device_logins": {"users": [OWN_UID]}, "keys": {"broker_absence_seconds": 600}}
    async with (
        running_followed(tmp_path, clock=clock, **changes) as (gateway, broker),
        gateway.login() as client,
        gateway.websocket() as by_device,
    ):
        token = gateway.token(life=10_000)
        broker.stop()
        await eventually(lambda: [entry for entry in gateway.logs if entry["event"] == "keys_not_followed"])
        clock.pass_time(590)
        async with gateway.login(token):
            assert (await login(by_device, **DEVICE_LOGIN))["ok"]

        clock.pass_time(20)
        assert await refused(gateway, token) == "gatepass_unavailable"
        assert await refused(gateway, **DEVICE_LOGIN) == "gatepass_unavailable"
        assert (await gateway.get("/echo", bearer(token))).status == 503
        await client.send("still here")
        assert await client.recv() == "still here"

        await broker.start()
        async with gateway.login(token):
            await broker.has_sessions(3)


async def test_a_clock_that_is_stepped_does_not_lengthen_the_brokers_absence(tmp_path: Path) -> None:
    clock = SteppedClock()
    broker = FollowedBroker(str(tmp_path / "none"), absence_seconds=600, clock=clock)
    broker._heard, broker._gone_since = True, clock().boottime
    clock.time_offset = -100_000
    clock.boot_offset = 601
    with pytest.raises(TryLaterError, match="601 s ago"):
        broker.check()
    assert broker.complaint == "the broker has been away for 601 s: nobody logs in until it is back"
