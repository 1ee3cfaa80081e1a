"""Attempts to go on after a revocation or the lock: by its moment, by not reading, by half a frame."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.abc
import pytest
from websockets.frames import Frame, Opcode

from gatepass.claims import Confirmation
from gatepass.errors import GatepassError
from gatepass.revocations import Cut, Revocation, Standing
from gatepass_gateway.sessions import Sessions
from gatepass_gateway.trusted_proxy import Client, Identity
from support.fake_broker import FAR, running_followed
from support.gateway import (
    UPGRADE,
    Minter,
    a_process,
    bearer,
    connect_message,
    eventually,
    login,
    messages_until_close,
    next_json,
    process_of,
    raw_client,
    read_all,
    read_until,
)
from support.upstream import USER

REVOKE_ALL = Standing(revocations=(Revocation(Cut.ALL, "", FAR),))
LOCK = Standing(locked=True)
CUTS = pytest.mark.parametrize(
    ("cut", "code"), [(REVOKE_ALL, "gatepass_token_revoked"), (LOCK, "gatepass_locked")], ids=["revoked", "locked"]
)


def frame(text: str) -> bytes:
    return Frame(Opcode.TEXT, text.encode()).serialize(mask=True)


async def log_in(stream: anyio.abc.SocketStream, token: str) -> None:
    """Log in over a bare stream."""
    await stream.send(UPGRADE)
    await read_until(stream, b'"ts": 1}}')
    await stream.send(frame(json.dumps(connect_message({"password": token}))))
    await read_until(stream, b"}}}")


@CUTS
@pytest.mark.parametrize("stage", ["all:no-challenge", "silent-login", "no-challenge"])
async def test_a_login_in_progress_is_ended_at_each_stage(tmp_path: Path, cut: Standing, code: str, stage: str) -> None:
    async with running_followed(tmp_path) as (gateway, broker), gateway.websocket() as client:
        await next_json(client)
        gateway.upstream.websocket = stage
        await client.send(json.dumps(connect_message({"password": gateway.token()})))
        await broker.has_sessions(1)
        await eventually(lambda: len(gateway.upstream.sessions) == 2)
        await broker.push(cut)
        answer, *rest = await messages_until_close(client)
        assert (answer["ok"], answer["error"]["details"]["authReason"]) == (False, code)
        assert (rest, client.close_code) == ([], 1008)
        for session in gateway.upstream.sessions:
            await eventually(session.ended.is_set)
        assert not any(session.logged_in for session in gateway.upstream.sessions)


@CUTS
async def test_a_token_that_the_upgrade_brought_is_judged_anew_with_the_first_frame(
    tmp_path: Path, cut: Standing, code: str
) -> None:
    async with running_followed(tmp_path) as (gateway, broker):
        async with gateway.websocket(additional_headers=[bearer(gateway.token())]) as client:
            await broker.push(cut)
            reply = await login(client, {})
            assert reply["error"]["details"]["authReason"] == code
        assert len(gateway.upstream.sessions) == 1


@CUTS
async def test_a_device_login_in_progress_is_ended(tmp_path: Path, cut: Standing, code: str) -> None:
    async with running_followed(tmp_path, device_logins={"users": [os.geteuid()]}) as (gateway, broker):
        gateway.upstream.websocket = "all:silent-login"
        async with gateway.websocket() as client:
            await next_json(client)
            await client.send(json.dumps(connect_message({"deviceToken": "x"}, device={"id": "d"})))
            await broker.has_sessions(1)
            await broker.push(cut)
            (answer,) = await messages_until_close(client)
            assert answer["error"]["details"]["authReason"] == code
            await eventually(gateway.upstream.sessions[0].ended.is_set)


@pytest.mark.parametrize("cut", [REVOKE_ALL, LOCK])
async def test_nothing_that_is_cut_off_begins_between_check_and_registration(cut: Standing) -> None:
    sessions, claims = Sessions(), Minter().claims()
    client = Client(os.geteuid())
    identity = Identity(USER, frozenset(), claims)
    session = sessions.new_session("websocket", client, identity, calls_itself="", scopes=frozenset())
    await sessions.enforce(cut)
    with pytest.raises(GatepassError), sessions.hold(session, claims):
        raise AssertionError("it began")
    device = sessions.new_session("websocket", client, None, calls_itself="", scopes=frozenset())
    with pytest.raises(GatepassError), sessions.hold(device, None):
        raise AssertionError("it began")


@CUTS
async def test_a_client_that_does_not_read_is_cut_off_in_time(tmp_path: Path, cut: Standing, code: str) -> None:
    async with running_followed(tmp_path) as (gateway, broker), raw_client(gateway.port) as client:
        await log_in(client, gateway.token())
        behind = gateway.upstream.sessions[1]
        with suppress(anyio.BrokenResourceError):
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    with anyio.move_on_after(0.2) as blocked:
                        await behind.send_raw(Frame(Opcode.BINARY, bytes(1_000_000)).serialize(mask=False))
                    if blocked.cancelled_caught:
                        break
                assert blocked.cancelled_caught, "the client was to be full"
                await broker.push(cut)
                tasks.cancel_scope.cancel()
        await eventually(behind.ended.is_set)


async def test_a_client_in_the_middle_of_a_frame_gets_its_reason_and_the_gateway_no_garbage(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), raw_client(gateway.port) as client:
        await log_in(client, gateway.token())
        behind = gateway.upstream.sessions[1]
        await client.send(frame("x" * 1_000)[:500])
        raw = gateway.upstream.raw[2]
        await eventually(lambda: raw.endswith(frame("x" * 1_000)[496:500]) or len(raw) > 1_000)
        await broker.push(LOCK)
        assert b"gatepass: an administrator has locked gatepass" in await read_all(client)
        await eventually(behind.ended.is_set)
        assert behind.close_code is None


async def test_a_client_that_is_sent_half_a_frame_is_cut_off_without_a_word_in_it(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), raw_client(gateway.port) as client:
        await log_in(client, gateway.token())
        await client.send(frame("half please"))
        await read_until(client, b"x" * 500)
        await broker.push(LOCK)
        assert await read_all(client) == b""
        behind = gateway.upstream.sessions[1]
        await eventually(behind.ended.is_set)
        assert (behind.close_code, behind.close_reason[:9]) == (1008, "gatepass:")


async def test_a_client_that_floods_while_it_is_cut_off_gets_nothing_through_afterwards(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), gateway.login() as client:

        async def flood() -> None:
            with suppress(Exception):
                while True:
                    await client.send("x" * 1_000)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood)
            await eventually(lambda: len(gateway.upstream.sessions[1].messages) > 50)
            await broker.push(LOCK)
            tasks.cancel_scope.cancel()
        behind = gateway.upstream.sessions[1]
        await eventually(behind.ended.is_set)


async def test_a_process_that_ends_during_the_login_ends_it(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), gateway.websocket() as client:
        with a_process() as process:
            bound = process_of(process.pid)
            token = gateway.token(confirmation=Confirmation(os.geteuid(), None, bound))
            await next_json(client)
            gateway.upstream.websocket = "silent-login"
            await client.send(json.dumps(connect_message({"password": token})))
            await broker.has_sessions(1)
            process.kill()
            (answer,) = await messages_until_close(client)
            assert answer["error"]["details"]["authReason"] == "gatepass_token_process_ended"


async def test_another_process_under_the_pid_of_the_one_that_asked_is_not_it(tmp_path: Path) -> None:
    with a_process() as process:
        bound = process_of(process.pid)._replace(pid=os.getpid())
        async with running_followed(tmp_path) as (gateway, _), gateway.websocket() as client:
            token = gateway.token(confirmation=Confirmation(os.geteuid(), None, bound))
            reply = await login(client, {"password": token})
            assert reply["error"]["details"]["authReason"] == "gatepass_token_process_ended"


async def test_a_process_that_ends_between_the_check_and_the_registration_begins_nothing() -> None:
    with a_process() as process:
        bound = Confirmation(os.geteuid(), None, process_of(process.pid))
    claims, sessions = Minter().claims(confirmation=bound), Sessions()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sessions.run)
        await anyio.wait_all_tasks_blocked()
        identity = Identity(USER, frozenset(), claims)
        session = sessions.new_session("http", Client(1), identity, calls_itself="", scopes=frozenset())
        with pytest.raises(GatepassError, match="ended"), sessions.hold(session, claims):
            raise AssertionError("it began")
        tasks.cancel_scope.cancel()


async def test_what_a_change_ends_is_reported_as_closed_with_its_confirmation(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), raw_client(gateway.port) as silent, gateway.login():
        await log_in(silent, gateway.token())  # and answers no close frame
        await broker.has_sessions(2)
        await broker.push(LOCK)
        assert broker.closed_by(broker.seq) == set(broker.ever)
        assert len(broker.ever) == 2


async def test_a_lock_that_flickers_leaves_nobody_in(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker), gateway.login() as client:
        await broker.tell(LOCK)
        await broker.tell(Standing())
        await broker.confirmed()
        assert await messages_until_close(client) == []
        assert client.close_code == 1008
        async with gateway.login():
            pass


async def test_what_a_user_opens_and_closes_all_the_time_does_not_keep_the_broker_busy(tmp_path: Path) -> None:
    async with running_followed(tmp_path) as (gateway, broker):
        broker.answers = False
        async with gateway.login():
            await broker.has_sessions(1)
        for _ in range(30):
            async with gateway.login():
                pass
        assert len(broker.reports) <= 3
