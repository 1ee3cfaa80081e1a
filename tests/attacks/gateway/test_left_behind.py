"""Attempts to leave something behind unseen: by spelling, by order, by fragments, by size, by ids used twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from gatepass.daemon.logs import SeldomPerKey
from gatepass_gateway import websocket_session
from support.fake_broker import FakeBroker, running_followed
from support.gateway import TestGateway, eventually, login, next_json
from support.upstream import USER

ADD = {"type": "req", "id": "7", "method": "cron.add", "params": {"schedule": {}}}
JOB = {"id": "job-1", "name": "evil"}


async def ask(client: ClientConnection, gateway: TestGateway, message: Any, **makes: Any) -> None:
    """Send a message, whole or in fragments, and wait for what the gateway answers to it."""
    gateway.upstream.makes.update({"cron.add": JOB, **makes})
    await client.send(message)
    await client.recv()


async def seen(broker: FakeBroker) -> list[tuple[str, str, str]]:
    await eventually(lambda: broker.left_behind)
    return [(entry.kind, entry.name, entry.removal) for entry in broker.left_behind]


CRON_JOB = [("cron job", "job-1", "openclaw cron rm job-1")]


@pytest.mark.parametrize(
    "message",
    [
        json.dumps(ADD),
        json.dumps(ADD).encode(),
        json.dumps(ADD).replace("cron.add", "cr\\u006fn.add"),
        json.dumps(ADD).replace("cron.add", "\\u0063\\u0072\\u006F\\u006e\\u002E\\u0061\\u0064\\u0064"),
        json.dumps(ADD).replace('"method"', '"m\\u0065thod"'),
        json.dumps(ADD).replace('"method"', '"method":"health","method"'),
        json.dumps(dict(reversed(ADD.items()))),
        json.dumps(ADD, indent=4),
        json.dumps({**ADD, "params": "é" * 100_000}, ensure_ascii=False),
        json.dumps({**ADD, "id": "7" * 5_000}),
        json.dumps(ADD)[:-1] + ', "more": ' + "9" * 5_000 + "}",
        [json.dumps(ADD)[:20], json.dumps(ADD)[20:40], "", json.dumps(ADD)[40:]],
        list(json.dumps(ADD)),
    ],
    ids=range(13),
)
async def test_however_it_is_written_a_cron_job_is_seen(tmp_path: Path, message: Any) -> None:
    async with running_followed(tmp_path) as (gateway, broker), gateway.login() as client:
        await ask(client, gateway, message)
        assert await seen(broker) == CRON_JOB
        (entry,) = broker.left_behind
        assert (entry.identity, entry.uid, entry.jti) == (USER, os.geteuid(), "a-token-id")
        assert entry.session in broker.sessions


@pytest.mark.parametrize(
    ("method", "payload", "expected"),
    [
        ("cron.add", {"created": True, "job": JOB}, CRON_JOB[0]),
        ("device.pair.approve", {"device": {"deviceId": "d1"}}, ("device", "d1", "openclaw devices remove d1")),
        ("device.token.rotate", {"deviceId": "d1", "role": "x"}, ("device", "d1", "openclaw devices remove d1")),
        ("device.pair.setupCode", {"setupId": "s1", "setupCode": "x"}, ("setup code", "s1", "openclaw devices list")),
        ("node.pair.approve", {"node": {"nodeId": "n1"}}, ("node", "n1", "openclaw nodes remove --node=n1")),
    ],
)
async def test_each_method_that_leaves_something_is_seen_and_no_secret_of_it(
    tmp_path: Path, method: str, payload: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    async with running_followed(tmp_path) as (gateway, broker), gateway.login() as client:
        await ask(client, gateway, json.dumps({**ADD, "method": method}), **{method: payload})
        assert await seen(broker) == [expected]
        assert "setupCode" not in str(gateway.logs)


async def test_a_device_session_is_watched_too(tmp_path: Path) -> None:
    device = {"auth": {"deviceToken": "x"}, "device": {"id": "d"}}
    async with (
        running_followed(tmp_path, device_logins={"users": [os.geteuid()]}) as (gateway, broker),
        gateway.websocket() as client,
    ):
        assert (await login(client, **device))["ok"]
        await ask(client, gateway, json.dumps(ADD))
        assert await seen(broker) == CRON_JOB
        assert broker.left_behind[0].identity is None


async def test_an_id_that_is_used_twice_hides_nothing(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), gateway.login() as client:
        gateway.upstream.makes["health"] = {"ok": True}
        gateway.upstream.makes["device.pair.approve"] = {"device": {"deviceId": "d1"}}
        for method in ("health", "device.pair.approve", "cron.add"):
            gateway.upstream.makes["cron.add"] = JOB
            await client.send(json.dumps({**ADD, "method": method}))
        for _ in range(3):
            await next_json(client)
        await eventually(lambda: len(broker.left_behind) == 2)
        assert {entry.name for entry in broker.left_behind} == {"d1", "job-1"}


@pytest.mark.parametrize(
    "message",
    ["x" * 2_000_000 + "cron.add", '{"method":"cron.add","id":"7","params":' + "[" * 50_000 + "]" * 50_000 + "}"],
    ids=["too long", "too deep"],
)
async def test_what_cannot_be_read_is_passed_on_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    monkeypatch.setattr(websocket_session, "_UNREAD", SeldomPerKey("left_behind_unknown"))
    async with running_followed(tmp_path) as (gateway, _), gateway.login() as client:
        await client.send(message)
        assert await client.recv() == message
        await client.send("still here")
        assert await client.recv() == "still here"
        assert [entry["uid"] for entry in gateway.logs if entry["event"] == "left_behind_unknown"] == [os.geteuid()]


@pytest.mark.parametrize(
    ("name", "removal"),
    [
        ("a; rm -rf /", "openclaw cron rm 'a; rm -rf /'"),
        ("'$(id)'", "openclaw cron rm ''\"'\"'$(id)'\"'\"''"),
        ("--all", "openclaw cron list"),
        ("\x1b[2Jx", "openclaw cron list"),
        ("x" * 1_000, "openclaw cron list"),
    ],
)
async def test_a_name_that_is_chosen_to_harm_who_removes_it_does_not(tmp_path: Path, name: str, removal: str) -> None:
    async with running_followed(tmp_path) as (gateway, broker), gateway.login() as client:
        await ask(client, gateway, json.dumps(ADD), **{"cron.add": {"id": name}})
        await eventually(lambda: broker.left_behind)
        assert broker.left_behind[0].removal == removal


async def test_what_was_left_behind_while_the_broker_was_away_is_told_when_it_is_back(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), gateway.login() as client:
        broker.stop()
        await ask(client, gateway, json.dumps(ADD))
        await broker.start()
        assert await seen(broker) == CRON_JOB


async def test_a_report_that_the_broker_refuses_does_not_stop_the_following_ones(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), gateway.login() as client:
        await broker.has_sessions(1)
        broker.error = {"code": "invalid_request", "message": "no"}
        await ask(client, gateway, json.dumps(ADD))
        await eventually(lambda: len(broker.names) > 1)
        broker.error = None
        await broker.has_sessions(1)
        await broker.confirmed()
        assert len(broker.left_behind) == 1
        await broker.lock()
        assert "keys_not_followed" in [entry["event"] for entry in gateway.logs]
