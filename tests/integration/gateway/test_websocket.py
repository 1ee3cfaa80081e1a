"""WebSockets through the proxy: login, relay, endings. The client is the `websockets` package."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import anyio
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from support.gateway import (
    SECONDS,
    UPGRADE,
    TestGateway,
    bearer,
    connect_message,
    eventually,
    login,
    messages_until_close,
    next_json,
    raw_client,
    read_until,
    running_gateway,
)
from support.upstream import IDENTITY_SOURCE, SCOPES_HEADER, USER, USER_HEADER, running_upstream


@pytest.mark.parametrize("field", ["password", "token"])
async def test_a_token_in_the_connect_frame_logs_in_as_its_subject(tmp_path: Path, field: str) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.websocket(path="/any/path?x=y") as client:
        token = gateway.token(scope=("operator.admin", "operator.read"))
        reply = await login(client, {field: token}, scopes=["operator.read", "operator.write"])
        anonymous, verified = gateway.upstream.sessions

        assert reply["ok"]
        assert reply["payload"]["auth"] == {"user": USER, "scopes": ["operator.read"]}
        assert (anonymous.request.source, verified.request.source) == ("127.0.0.1", IDENTITY_SOURCE)
        assert anonymous.request.values(USER_HEADER) == []
        assert (anonymous.request.target, verified.request.target) == ("/any/path?x=y", "/any/path")
        assert verified.request.values(SCOPES_HEADER) == ["operator.read"]
        assert verified.request.values("sec-websocket-extensions") == []
        await eventually(anonymous.ended.is_set)
        assert anonymous.messages == []
        assert (anonymous.close_code, anonymous.close_reason) == (1000, "gatepass: continued with identity")
        sent = json.loads(verified.messages[0])
        assert "auth" not in sent["params"]
        assert sent["params"]["scopes"] == ["operator.read"]
        assert token.encode() not in gateway.upstream.bytes_received


async def test_a_login_without_scopes_says_so_upstream(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.login(scopes=["operator.admin"]):
        assert gateway.upstream.sessions[1].request.values(SCOPES_HEADER) == [""]
        assert gateway.upstream.sessions[1].scopes == ()


async def test_messages_of_all_sizes_go_both_ways(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.login() as client:
        for message in ("", "é" * 100, "x" * 125, "x" * 126, "x" * 65_536, "x" * 5_000_000, b"\0\xff" * 100_000, b""):
            await client.send(message)
            assert await client.recv() == message


async def test_messages_come_in_order_while_both_sides_talk(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.login() as client:

        async def talk() -> None:
            for number in range(500):
                await client.send(f"{number} " + "x" * number * 20)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk)
            for number in range(500):
                assert str(await client.recv()).startswith(f"{number} ")


async def test_a_fragmented_message_arrives_whole(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.login() as client:
        await client.send(["frag", "men", "", "ted" * 100_000])
        assert await client.recv() == "fragmen" + "ted" * 100_000


async def test_a_fragmented_first_frame_logs_in(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.websocket() as client:
        await next_json(client)
        text = json.dumps(connect_message({"password": gateway.token()}))
        await client.send([text[:10], text[10:300], text[300:]])
        assert (await next_json(client))["ok"]


async def test_pings_go_to_the_other_end_and_back(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.login() as client:
        with anyio.fail_after(SECONDS):
            await (await client.ping(b"from the client"))
        await client.send("ping please")
        await client.send("x")
        await client.recv()
        assert gateway.upstream.sessions[1].pings == [b"from the client"]


async def test_pings_before_the_login_are_answered_by_the_gateway(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.websocket() as client:
        with anyio.fail_after(SECONDS):
            for _ in range(50):
                await (await client.ping())
        assert (await login(client, {"password": gateway.token()}))["ok"]


async def test_the_gateways_close_code_reaches_the_client(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.login() as client:
        await client.send("close please")
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert (client.close_code, client.close_reason) == (4001, "gateway policy changed")


async def test_the_clients_close_code_reaches_the_gateway(tmp_path: Path) -> None:
    async with (
        running_gateway(tmp_path) as gateway,
        gateway.login() as client,
    ):
        await client.close(4242, "enough")
        session = gateway.upstream.sessions[1]
        await eventually(session.ended.is_set)
        assert (session.close_code, session.close_reason) == (4242, "enough")
        assert client.close_code == 4242


async def test_a_client_that_vanishes_ends_the_session_behind(tmp_path: Path) -> None:
    async with (
        running_gateway(tmp_path) as gateway,
        gateway.login() as client,
    ):
        client.transport.abort()
        await eventually(gateway.upstream.sessions[1].ended.is_set)


async def test_a_gateway_that_vanishes_ends_the_session_of_the_client(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.login() as client:
        await client.send("slam please")
        with anyio.fail_after(SECONDS), pytest.raises(ConnectionClosed):
            await client.recv()


async def test_a_probe_without_credentials_gets_the_gateways_own_answer(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.websocket() as client:
        reply = await login(client, None)

        assert reply["error"] == {"code": "NOT_PAIRED", "message": "device identity required"}
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert (client.close_code, client.close_reason) == (1008, "device identity required")
        [session] = gateway.upstream.sessions
        assert session.request.source == "127.0.0.1"


async def test_a_first_frame_without_a_token_is_passed_on_unchanged(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.websocket() as client:
        await next_json(client)
        text = json.dumps(connect_message({"password": "wrong"}, locale="é"), indent=2, ensure_ascii=False)
        await client.send(text)
        assert (await next_json(client))["error"]["message"] == "unauthorized"
        assert gateway.upstream.sessions[0].messages == [text]


async def test_a_node_logs_in_by_its_device_without_a_rule(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.websocket() as client:
        reply = await login(client, {"deviceToken": "x"}, role="node", device={"id": "x"})
        assert reply["payload"]["auth"] == {"user": None, "scopes": []}
        await client.send("hello")
        assert await client.recv() == "hello"


async def test_an_operator_logs_in_by_a_device_only_with_a_rule(tmp_path: Path) -> None:
    async with (
        running_gateway(tmp_path, device_logins={"users": [os.geteuid()]}) as gateway,
        gateway.websocket() as client,
    ):
        assert (await login(client, {"deviceToken": "x"}, device={"id": "x"}))["ok"]


async def test_a_bearer_token_at_the_upgrade_gives_the_identity_once_the_frame_has_asked(tmp_path: Path) -> None:
    async with (
        running_gateway(tmp_path) as gateway,
        gateway.websocket(additional_headers=[bearer(gateway.token())]) as client,
    ):
        reply = await login(client, None, scopes=["operator.read"])

        assert reply["payload"]["auth"] == {"user": USER, "scopes": ["operator.read"]}
        anonymous, session = gateway.upstream.sessions
        assert anonymous.request.source != IDENTITY_SOURCE
        assert not anonymous.request.values("authorization")
        assert session.request.source == IDENTITY_SOURCE


async def test_a_reverse_proxys_websocket_passes_as_it_is(tmp_path: Path) -> None:
    headers = [(USER_HEADER, USER), ("x-forwarded-for", "9.9.9.9")]
    proxies = [{"user": os.geteuid()}]
    async with (
        running_gateway(tmp_path, reverse_proxy=proxies) as gateway,
        gateway.websocket(additional_headers=headers, origin="https://gateway.example") as client,
    ):
        assert (await login(client, None, device={"id": "x"}))["payload"]["auth"]["user"] == USER
        [session] = gateway.upstream.sessions
        assert session.request.values("origin") == ["https://gateway.example"]
        assert "device" in json.loads(session.messages[0])["params"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"age": 1_000}, "the token has expired; ask the broker for a new one"),
        ({"audience": "other"}, "ask the broker for one with audience 'openclaw'"),
        ({"uid": 4_242}, "issued to another user"),
    ],
)
async def test_a_refusal_comes_in_the_gateways_own_form(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.websocket() as client:
        reply = await login(client, {"password": gateway.token(**changes)})

        assert reply["id"] == "1:one"
        assert reply["error"]["message"].startswith("unauthorized: gateway password mismatch (gatepass: the token")
        assert says in reply["error"]["message"]
        assert reply["error"]["details"]["code"] == "AUTH_PASSWORD_MISMATCH"
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1008
        assert client.close_reason is not None
        assert client.close_reason.startswith("gatepass: the token")
        await eventually(gateway.upstream.sessions[0].ended.is_set)
        assert gateway.upstream.sessions[0].messages == []


async def test_a_secret_that_stands_for_no_token_becomes_its_reason(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.websocket() as client:
        reply = await login(client, {"password": "gatepass-none.unreachable.AAAAAAAAAAAAAAAAAAAAAA"})

        assert "the gatepass broker was not running" in reply["error"]["message"]
        assert reply["error"]["retryable"] is True


async def test_the_upgrade_to_a_gateway_that_is_down_is_503(tmp_path: Path) -> None:
    async with running_upstream() as behind:
        pass
    async with running_gateway(tmp_path, upstream=behind) as gateway:
        with pytest.raises(InvalidStatus) as caught:
            await gateway.websocket().__aenter__()
        assert caught.value.response.status_code == 503
        assert b"nothing listens" in caught.value.response.body


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("refuse-identity", "did not open a WebSocket for this identity (it answered 403)"),
        ("garbage-first", "began with something else than a challenge"),
        ("no-challenge", "did not answer the login in time"),
        ("silent-login", "did not answer the login in time"),
        ("slam-login", "closed the connection at the login"),
        ("hang", "did not answer the upgrade in time"),
        ("slam", "closed the connection without an answer"),
    ],
)
async def test_a_gateway_that_fails_at_the_login_is_said_to_have(tmp_path: Path, fault: str, says: str) -> None:
    async with running_gateway(tmp_path, limits={"login_seconds": 0.3}) as gateway, gateway.websocket() as client:
        await next_json(client)
        gateway.upstream.websocket = fault
        await client.send(json.dumps(connect_message({"password": gateway.token()})))
        reply = await next_json(client)

        assert reply["error"]["code"] == "UNAVAILABLE"
        assert says in reply["error"]["message"]
        gateway.upstream.websocket = "normal"
        async with gateway.login():
            pass


@pytest.mark.parametrize("fault", ["bad-frame-first", "bad-frame-login", "close-login"])
@pytest.mark.parametrize("secret", [None, "not ours"])
async def test_broken_frames_from_behind_end_that_session_only(tmp_path: Path, fault: str, secret: str | None) -> None:
    async with running_gateway(tmp_path) as gateway:
        gateway.upstream.websocket = fault if secret is None else f"all:{fault}"
        async with gateway.websocket() as client:
            with contextlib.suppress(ConnectionClosed):
                await login(client, {"password": secret or gateway.token()})
            await messages_until_close(client)
            assert client.close_code == (1008 if fault == "close-login" else 1002)
        gateway.upstream.websocket = "normal"
        async with gateway.login():
            pass


async def test_an_upgrade_that_is_never_answered_gives_its_place_back(tmp_path: Path) -> None:
    limits = {"login_seconds": 0.2, "waiting_per_uid": 1}
    async with running_gateway(tmp_path, limits=limits) as gateway:
        gateway.upstream.websocket = "hang"
        with pytest.raises(InvalidStatus) as caught:
            await gateway.websocket().__aenter__()
        assert b"did not answer the upgrade in time" in caught.value.response.body
        gateway.upstream.websocket = "normal"
        async with gateway.login():
            pass


async def test_another_answer_than_an_upgrade_is_passed_on(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        gateway.upstream.websocket = "refuse"
        with pytest.raises(InvalidStatus) as caught:
            await gateway.websocket().__aenter__()
        assert caught.value.response.status_code == 403
        assert caught.value.response.body == b'{"error":{"type":"refused"}}'


async def test_compression_is_not_agreed_on(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.websocket(compression="deflate") as client:
        assert (await login(client, {"password": gateway.token()}))["ok"]
        assert client.response is not None
        assert client.response.headers.get("sec-websocket-extensions") is None
        await client.send("x" * 10_000)
        assert await client.recv() == "x" * 10_000


async def test_what_is_no_frame_ends_a_live_session_with_a_reason(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.login() as client:
        client.transport.write(b"\xf3\x80abcd")
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1002
        await eventually(gateway.upstream.sessions[1].ended.is_set)


async def test_no_connect_request_in_time_ends_the_connection(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, limits={"first_frame_seconds": 0.2}) as gateway, gateway.websocket() as client:
        await next_json(client)
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert (client.close_code, client.close_reason) == (1008, "gatepass: no connect request came in time")
        await eventually(gateway.upstream.sessions[0].ended.is_set)


async def test_login_gives_the_place_of_a_waiting_connection_back(tmp_path: Path) -> None:
    async with (
        running_gateway(tmp_path, limits={"waiting_per_uid": 1}) as gateway,
        gateway.login(),
        gateway.login(),
        gateway.login(),
    ):
        assert gateway.upstream.waiting == 0


async def test_the_first_frame_may_come_with_the_upgrade(tmp_path: Path) -> None:
    from websockets.frames import Frame, Opcode

    async with running_gateway(tmp_path) as gateway, raw_client(gateway.port) as stream:
        text = json.dumps(connect_message({"password": gateway.token()})).encode()
        more = Frame(Opcode.TEXT, b"at once").serialize(mask=True)
        await stream.send(UPGRADE + Frame(Opcode.TEXT, text).serialize(mask=True) + more)
        data = await read_until(stream, b"at once")

        assert data.startswith(b"HTTP/1.1 101")
        assert data.count(b"connect.challenge") <= 1  # who does not wait for it may miss it
        assert b"hello-ok" in data
        assert gateway.upstream.sessions[1].messages[1] == "at once"


async def test_nothing_is_left_open_after_many_logins(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        await log_in_and_fail_to(gateway)
        await eventually(lambda: all(session.ended.is_set() for session in gateway.upstream.sessions))
        await anyio.sleep(0.1)
        before = open_files()
        for _ in range(5):
            await log_in_and_fail_to(gateway)
        await eventually(lambda: open_files() <= before)
        assert gateway.upstream.waiting == 0


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def log_in_and_fail_to(gateway: TestGateway) -> None:
    async with gateway.login() as client:
        await client.send("x")
    for auth in ({"password": "gatepass-none.denied.x"}, None):
        async with gateway.websocket() as client:
            await login(client, auth)
