"""Where the proxy's keys come from, and what happens when the broker comes and goes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from gatepass.errors import ErrorCode
from gatepass.frames import FrameDecoder, encode_frame
from gatepass.messages import issued_token
from gatepass_gateway.followed_broker import FollowedBroker
from gatepass_gateway.keys import JwksFileKeys
from support.broker import running_broker
from support.gateway import Minter, bearer, eventually, login, running_gateway
from support.upstream import USER

REST = {"seq": 1, "locked": False, "revocations": []}
"""What a broker says besides its keys."""


def replace(path: Path, keys: object) -> None:
    new = path.with_suffix(".new")
    new.write_text(keys if isinstance(keys, str) else json.dumps(keys))
    new.replace(path)


async def test_a_brokers_token_logs_in_and_its_keys_are_followed(tmp_path: Path) -> None:
    async with (
        running_broker(tmp_path) as broker,
        running_gateway(tmp_path, keys={"broker_socket": str(broker.socket)}) as gateway,
    ):
        await eventually(lambda: [entry for entry in gateway.logs if entry["event"] == "keys"])
        token = issued_token(await broker.ask(op="issue")).token

        assert (await gateway.get("/echo", bearer(token))).json()["identity"] == USER
        async with gateway.login(token):
            pass


async def test_a_gateway_that_starts_before_the_broker_works_as_soon_as_the_broker_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatepass_gateway.followed_broker._REFRESH_SECONDS", 0.3)
    socket = tmp_path / "broker.sock"
    async with running_gateway(tmp_path, keys={"broker_socket": str(socket)}) as gateway:
        answer = await gateway.get("/echo", bearer(gateway.token()))
        assert answer.status in (401, 503)
        assert "retry-after" in dict(answer.headers)
        async with running_broker(tmp_path) as broker:
            token = issued_token(await broker.ask(op="issue")).token
            assert (await gateway.get("/echo", bearer(token))).json()["identity"] == USER


async def test_a_broker_that_restarts_with_new_keys_is_heard_in_time(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as broker:
        pass
    async with running_gateway(tmp_path, keys={"broker_socket": str(broker.socket)}) as gateway:
        tokens = []
        for _ in range(2):
            async with running_broker(tmp_path) as broker:
                tokens.append(issued_token(await broker.ask(op="issue")).token)
                assert (await gateway.get("/echo", bearer(tokens[-1]))).json()["identity"] == USER


async def test_live_sessions_and_known_keys_outlive_the_broker(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as broker, anyio.create_task_group():
        token = issued_token(await broker.ask(op="issue")).token
        keys = FollowedBroker(str(broker.socket))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keys.run)
            await eventually(lambda: keys.current.keys.table)
            tasks.cancel_scope.cancel()
    minter = Minter()
    socket = tmp_path / "fake.sock"
    async with (
        running_gateway(tmp_path, minter=minter, keys={"broker_socket": str(socket)}) as gateway,
        anyio.create_task_group() as broker_tasks,
    ):
        broker_tasks.start_soon(scripted_broker, socket, [{**REST, "issuer": minter.issuer, **minter.jwks()}])
        await eventually(lambda: [entry for entry in gateway.logs if entry["event"] == "keys"])
        async with gateway.login() as client:
            broker_tasks.cancel_scope.cancel()
            await eventually(lambda: [entry for entry in gateway.logs if entry["event"] == "keys_not_followed"])
            await client.send("still here")
            assert await client.recv() == "still here"
            assert (await gateway.get("/echo", bearer(gateway.token()))).json()["identity"] == USER
            answer = await gateway.get("/echo", bearer(token))
            assert answer.error["code"] == f"gatepass_{ErrorCode.TOKEN_UNKNOWN_KEY}"


async def scripted_broker(path: Path, replies: Sequence[object]) -> None:
    """Answer each connection's first request with each of `replies` in turn, and say no more."""
    async with await anyio.create_unix_listener(path, mode=0o600) as listener:

        async def serve(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                decoder = FrameDecoder()
                while (request := decoder.next_message()) is None:
                    decoder.feed(await stream.receive())
                for reply in replies:
                    if isinstance(reply, bytes):
                        await stream.send(reply)
                    elif isinstance(reply, dict):
                        await stream.send(encode_frame({"id": request["id"], "ok": True, **reply}))
                await anyio.sleep_forever()

        await listener.serve(serve)


@pytest.mark.parametrize(
    "reply",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\1\xc1",
        {},
        {**REST, "issuer": "x"},
        {**REST, "issuer": 1, "keys": []},
        {**REST, "issuer": "x", "keys": [{}]},
        {**REST, "issuer": "x", "keys": ["text"]},
        {**REST, "issuer": "x", "keys": [None, 1]},
        {**REST, "issuer": "x", "keys": [{"kty": "OKP", "x": "AA"}]},
        {"seq": 2, "issuer": "x", "keys": []},
        {"locked": False, "revocations": [], "issuer": "x", "keys": []},
        {**REST, "seq": "2", "issuer": "x", "keys": []},
        {**REST, "locked": 1, "issuer": "x", "keys": []},
        {**REST, "revocations": [["all", ""]], "issuer": "x", "keys": []},
        {**REST, "revocations": [["tomorrow", "", 1]], "issuer": "x", "keys": []},
        {"id": 99},
        {"ok": False, "error": {"code": "denied", "message": "no"}},
    ],
)
async def test_a_broker_that_talks_nonsense_changes_no_key_and_stops_nothing(tmp_path: Path, reply: object) -> None:
    minter, path = Minter(), tmp_path / "fake.sock"
    good = {**REST, "issuer": minter.issuer, **minter.jwks()}
    async with (
        running_gateway(tmp_path, minter=minter, keys={"broker_socket": str(path)}) as gateway,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(scripted_broker, path, [good, reply])
        await eventually(lambda: [entry for entry in gateway.logs if entry["event"] == "keys_not_followed"])
        await eventually(lambda: [entry for entry in gateway.logs if entry["event"] == "keys"])
        await anyio.sleep(0.02)
        assert (await gateway.get("/echo", bearer(gateway.token()))).json()["identity"] == USER
        tasks.cancel_scope.cancel()


async def test_a_jwks_file_that_is_replaced_counts_from_the_next_request_on(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        old, new = gateway.minter, Minter()
        assert (await gateway.get("/echo", bearer(old.token()))).status == 200
        replace(gateway.jwks_file, {"keys": [*old.jwks()["keys"], *new.jwks()["keys"]]})
        assert (await gateway.get("/echo", bearer(old.token()))).status == 200
        assert (await gateway.get("/echo", bearer(new.token()))).status == 200
        replace(gateway.jwks_file, new.jwks())
        answer = await gateway.get("/echo", bearer(old.token()))
        assert answer.error["code"] == "gatepass_token_unknown_key"
        async with gateway.websocket() as client:
            assert (await login(client, {"password": new.token()}))["ok"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"keys":1}', '{"keys":[1]}', '{"keys":[{}]}', "[" * 100_000, "\x00"]
)
async def test_a_broken_jwks_file_leaves_the_last_good_keys(tmp_path: Path, text: str) -> None:
    async with running_gateway(tmp_path) as gateway:
        assert (await gateway.get("/echo", bearer(gateway.token()))).status == 200
        replace(gateway.jwks_file, text)
        assert (await gateway.get("/echo", bearer(gateway.token()))).status == 200
        gateway.jwks_file.unlink()
        assert (await gateway.get("/echo", bearer(gateway.token()))).status == 200
        replace(gateway.jwks_file, Minter().jwks())
        assert (await gateway.get("/echo", bearer(gateway.token()))).status == 401


def test_a_jwks_file_that_could_not_be_read_once_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(Minter().jwks()))
    keys = JwksFileKeys(path, None)

    def fail(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        assert not keys.current.keys.table
    assert keys.current.keys.table


def test_a_fifo_in_place_of_the_jwks_file_blocks_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "jwks.json")
    assert not JwksFileKeys(tmp_path / "jwks.json", None).current.keys.table
