"""Attempts to get around the lock with a credential of the gateway's own that comes outside the connect frame."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import anyio
import h11
import pytest
from websockets.exceptions import InvalidStatus

from gatepass.revocations import Cut, Standing
from gatepass_gateway import followed_broker
from support.broker import SteppedClock
from support.fake_broker import FakeBroker, running_followed
from support.gateway import (
    HttpClient,
    TestGateway,
    connect_message,
    eventually,
    http_client,
    login,
    messages_until_close,
    next_json,
    running_gateway,
)
from support.upstream import USER, USER_HEADER

LOCK = Standing(locked=True)
OWN = "of the gateway's own"

CREDENTIALS: list[tuple[str, dict[str, str]]] = [
    ("/echo", {"authorization": f"Bearer {OWN}"}),
    ("/echo", {"Authorization": "Basic eDp5"}),
    ("/echo?token=x", {}),
    ("/echo?x", {}),
    ("/echo", {"x-openclaw-token": OWN}),
    ("/echo", {"X-OpenClaw-Password": OWN}),
    ("/echo", {"x_api_key": OWN}),
    ("/echo", {"x-api-key": OWN}),
    ("/echo", {"cookie": "session=x"}),
    ("/echo", {"proxy-authorization": "Basic eDp5"}),
    ("/echo", {"sec-websocket-protocol": "bearer.x"}),
    ("/echo", {"referer": "http://gateway/?token=x"}),
    ("/echo", {"x-learnt-tomorrow": OWN}),
]
ALL_CREDENTIALS = pytest.mark.parametrize(("target", "headers"), CREDENTIALS)

HARMLESS = {
    "accept": "*/*",
    "accept-encoding": "gzip",
    "accept-language": "en",
    "cache-control": "no-cache",
    "content-type": "application/json",
    "date": "Tue, 15 Nov 1994 08:12:31 GMT",
    "expect": "100-continue",
    "origin": "http://127.0.0.1",
    "pragma": "no-cache",
    "sec-fetch-mode": "websocket",
    "te": "trailers",
    "user-agent": "a probe",
}


async def refused_upgrade(gateway: TestGateway, target: str, headers: dict[str, str]) -> tuple[int, str]:
    """Return status and code with which an upgrade is refused."""
    with pytest.raises(InvalidStatus) as caught:
        async with gateway.websocket(path=target, additional_headers=headers):
            pass
    body = bytes(caught.value.response.body or b"").decode()
    return caught.value.response.status_code, body.rpartition('"code": "')[2].partition('"')[0]


async def open_events(gateway: TestGateway, client: HttpClient, target: str, headers: dict[str, str]) -> None:
    """Begin an answer without end."""
    await client.start("GET", target.replace("/echo", "/events"), *headers.items())
    await client.send(h11.EndOfMessage())
    gateway.upstream.step.release()
    assert isinstance(await client.next_event(), h11.Response)
    assert isinstance(await client.next_event(), h11.Data)


async def assert_cut_off(gateway: TestGateway, client: HttpClient) -> None:
    await eventually(lambda: gateway.upstream.hangups)
    with pytest.raises((h11.RemoteProtocolError, anyio.BrokenResourceError)):
        await client.next_event()


@ALL_CREDENTIALS
async def test_under_lock_nothing_that_may_be_a_credential_passes(
    tmp_path: Path, target: str, headers: dict[str, str]
) -> None:
    async with running_followed(tmp_path) as (gateway, broker):
        await broker.lock()
        answer = await gateway.get(target, *headers.items())
        assert (answer.status, answer.error["code"]) == (403, "gatepass_locked")
        assert await refused_upgrade(gateway, target, headers) == (403, "gatepass_locked")
        assert gateway.upstream.requests == []

        await broker.unlock()
        assert (await gateway.get(target, *headers.items())).status == 200


async def test_a_request_without_a_credential_passes_and_is_no_session(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), http_client(gateway.port) as client:
        await open_events(gateway, client, "/echo", HARMLESS)
        await broker.lock()
        answer = await gateway.get("/echo", *HARMLESS.items(), method="POST", body=b"a body")
        assert answer.status == 200
        assert (await gateway.get("/echo", *HARMLESS.items(), method="POST", body=[b"in", b"parts"])).status == 200
        async with gateway.websocket(additional_headers=HARMLESS) as probe:
            assert (await login(probe, None))["error"]["code"] == "NOT_PAIRED"
        gateway.upstream.step.release()
        assert isinstance(await client.next_event(), h11.Data)
        assert broker.ever == {}


@ALL_CREDENTIALS
async def test_the_lock_ends_an_answer_without_end(tmp_path: Path, target: str, headers: dict[str, str]) -> None:
    async with running_followed(tmp_path) as (gateway, broker), http_client(gateway.port) as client:
        await open_events(gateway, client, target, {**headers, "user-agent": "curl"})
        await broker.push(LOCK)
        await assert_cut_off(gateway, client)


@pytest.mark.parametrize(("by", "value"), [(Cut.ALL, ""), (Cut.UID, str(os.geteuid()))])
async def test_a_revocation_ends_it_as_a_devices_session(tmp_path: Path, by: Cut, value: str) -> None:
    async with running_followed(tmp_path) as (gateway, broker), http_client(gateway.port) as client:
        await open_events(gateway, client, "/echo?token=x", {"user-agent": "curl"})
        await broker.has_sessions(1)
        (session,) = broker.sessions.values()
        assert (session.kind, session.login, session.uid, session.client) == ("http", "device", os.geteuid(), "curl")
        assert (session.identity, session.jti, session.scope) == (None, None, "")
        await broker.revoke(by, value)
        await assert_cut_off(gateway, client)
        await broker.has_sessions(0)


async def test_an_upgrade_that_is_not_answered_yet_is_ended(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), anyio.create_task_group() as tasks:
        gateway.upstream.websocket = "hang"
        refusals: list[tuple[int, str]] = []

        async def upgrade() -> None:
            refusals.append(await refused_upgrade(gateway, "/", {"cookie": "x"}))

        tasks.start_soon(upgrade)
        await broker.has_sessions(1)
        await broker.push(LOCK)
        await eventually(lambda: refusals)
        assert refusals == [(403, "gatepass_locked")]


@pytest.mark.parametrize(("target", "headers"), [("/?token=x", {}), ("/", {"cookie": "x"})])
async def test_an_operators_upgrade_counts_as_its_frame(tmp_path: Path, target: str, headers: dict[str, str]) -> None:
    async with running_followed(tmp_path) as (gateway, broker):
        gateway.upstream.websocket = "all:silent-login"
        async with (
            gateway.websocket(path=target, additional_headers=headers) as early,
            gateway.websocket(path=target, additional_headers=headers) as late,
        ):
            await next_json(early)
            await early.send(json.dumps(connect_message()))
            await broker.has_sessions(1)
            (session,) = broker.sessions.values()
            assert (session.kind, session.login) == ("websocket", "device")
            await broker.push(LOCK)
            (answer,) = await messages_until_close(early)
            assert answer["error"]["details"]["authReason"] == "gatepass_locked"
            assert (await login(late, None))["error"]["details"]["authReason"] == "gatepass_locked"


async def test_a_node_with_a_cookie_stays(tmp_path: Path) -> None:
    async with (
        running_followed(tmp_path) as (gateway, broker),
        gateway.websocket(additional_headers={"cookie": "x"}) as node,
    ):
        assert (await login(node, {"token": "n"}, role="node", device={"id": "d"}))["ok"]
        await broker.lock()
        await node.send("still here")
        assert await node.recv() == "still here"


async def test_remote_users_may_bring_what_they_like(tmp_path: Path) -> None:
    anonymous = {"x-forwarded-for": "9.9.9.9", "cookie": "x"}
    known = {**anonymous, USER_HEADER: USER}
    proxy: dict[str, Any] = {"reverse_proxy": [{"user": os.geteuid()}]}
    async with running_followed(tmp_path, **proxy) as (gateway, broker), http_client(gateway.port) as client:
        await open_events(gateway, client, "/echo?token=x", known)
        await broker.lock()
        assert (await gateway.get("/echo?token=x", *known.items())).json()["identity"] == USER
        answer = await gateway.get("/echo?token=x", *anonymous.items())
        assert answer.error["type"] == "proxy_attribution_required"  # the gateway's own word
        gateway.upstream.step.release()
        assert isinstance(await client.next_event(), h11.Data)


@ALL_CREDENTIALS
async def test_without_a_word_from_the_broker_the_lock_may_be_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, headers: dict[str, str]
) -> None:
    monkeypatch.setattr(followed_broker, "_REFRESH_SECONDS", 0.01)
    async with running_gateway(tmp_path, keys={"broker_socket": str(tmp_path / "none.sock")}) as gateway:
        answer = await gateway.get(target, *headers.items())
        assert (answer.status, answer.error["code"]) == (503, "gatepass_unavailable")
        assert await refused_upgrade(gateway, target, headers) == (503, "gatepass_unavailable")
        assert gateway.upstream.requests == []
        assert (await gateway.get("/echo")).status == 200


async def test_once_the_broker_is_away_too_long_the_lock_may_be_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed_broker, "_REFRESH_SECONDS", 0.3)
    clock = SteppedClock()
    async with running_followed(tmp_path, clock=clock, keys={"broker_absence_seconds": 600}) as (gateway, broker):
        await _be_away(gateway, broker)
        clock.pass_time(590)
        assert (await gateway.get("/echo?token=x")).status == 200
        clock.pass_time(20)
        assert (await gateway.get("/echo?token=x")).error["code"] == "gatepass_unavailable"
        assert (await gateway.get("/echo")).status == 200
        await broker.start()
        assert (await gateway.get("/echo?token=x")).status == 200


@ALL_CREDENTIALS
async def test_with_keys_from_a_file_no_lock_is_known(tmp_path: Path, target: str, headers: dict[str, str]) -> None:
    async with running_gateway(tmp_path) as gateway:
        assert (await gateway.get(target, *headers.items())).status == 200


async def _be_away(gateway: TestGateway, broker: FakeBroker) -> None:
    broker.stop()
    await eventually(lambda: [entry for entry in gateway.logs if entry["event"] == "keys_not_followed"])
