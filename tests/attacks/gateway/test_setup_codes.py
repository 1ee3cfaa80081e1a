"""A setup code logs a node in, and its answer brings the token of an operator besides (seen on OpenClaw 2026.9.6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.fake_broker import running_followed
from support.gateway import eventually, login, messages_until_close

NODE: dict[str, Any] = {"role": "node", "device": {"id": "d"}}
SETUP_CODE = {"bootstrapToken": "from a setup code"}


async def test_a_setup_code_pairs_no_node_under_lock(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker):
        await broker.lock()
        async with gateway.websocket() as client:
            reply = await login(client, SETUP_CODE, **NODE)
            await messages_until_close(client)
            assert reply["error"]["details"]["authReason"] == "gatepass_locked"


async def test_a_node_that_a_setup_code_let_in_is_listed_and_ended_by_the_lock(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), gateway.websocket() as client:
        assert (await login(client, SETUP_CODE, **NODE))["ok"]
        await broker.has_sessions(1)
        (session,) = broker.sessions.values()
        assert (session.login, session.identity) == ("device", None)
        await broker.lock()
        await messages_until_close(client)
        assert client.close_code == 1008


async def test_the_device_that_a_setup_code_paired_is_listed_with_how_to_remove_it(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), gateway.websocket() as client:
        assert (await login(client, SETUP_CODE, **{**NODE, "device": {"id": "4f1f$(id)"}}))["ok"]
        await eventually(lambda: broker.left_behind)
        (entry,) = broker.left_behind
        assert (entry.kind, entry.name) == ("device", "4f1f$(id)")
        assert entry.removal == "openclaw devices remove '4f1f$(id)'"
