"""The proxy as a process: options, signals, and what it says about its faults."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import h11
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from gatepass.daemon.command import MISCONFIGURED
from gatepass_gateway.cli import main
from support.gateway import (
    UPGRADE,
    GatewayProcess,
    Minter,
    bearer,
    connect_message,
    eventually,
    free_port,
    gateway_tables,
    http_client,
    login,
    next_json,
    raw_client,
    read_all,
    read_until,
    running_gateway,
    to_toml,
)
from support.upstream import USER, FakeGateway, running_upstream


@asynccontextmanager
async def process(
    directory: Path, *options: str, **changes: Any
) -> AsyncIterator[tuple[GatewayProcess, FakeGateway, Minter]]:
    minter = Minter()
    (directory / "jwks.json").write_text(json.dumps(minter.jwks()))
    changes = {"keys": {"jwks_file": str(directory / "jwks.json")}, **changes}
    async with (
        running_upstream() as upstream,
        GatewayProcess(directory, gateway_tables(upstream.port, **changes), *options) as gateway,
    ):
        yield gateway, upstream, minter


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_sigterm_ends_sessions_with_a_close_frame_and_answers_with_their_answer(
    tmp_path: Path, loop: str
) -> None:
    async with process(tmp_path, "--loop", loop) as (gateway, upstream, minter):
        token = minter.token()
        async with (
            connect(f"ws://127.0.0.1:{gateway.port}", proxy=None) as client,
            connect(f"ws://127.0.0.1:{gateway.port}", proxy=None) as busy,
            http_client(gateway.port) as idle,
            http_client(gateway.port) as streaming,
        ):
            assert (await login(client, {"password": token}))["ok"]
            assert (await login(busy, {"password": token}))["ok"]
            await busy.send("half please")  # a frame of 1000 bytes, of which 500 come
            await idle.request("GET", "/echo")
            await streaming.start("GET", "/events", bearer(token))
            await streaming.send(h11.EndOfMessage())
            assert isinstance(await streaming.next_event(), h11.Response)
            await anyio.sleep(0.1)
            gateway.signal(signal.SIGTERM)

            with pytest.raises(ConnectionClosed):
                await client.recv()
            assert (client.close_code, client.close_reason) == (1012, "gatepass: the proxy restarts, connect again")
            with pytest.raises(ConnectionClosed):
                await busy.recv()
            assert busy.close_code == 1006  # a close frame in the middle of another frame would be data
            assert isinstance(await idle.next_event(), h11.ConnectionClosed)
            for _ in range(3):
                upstream.step.release()
            data = b""
            while isinstance(event := await streaming.next_event(), h11.Data):
                data += bytes(event.data)
            assert data.endswith(b"data: 2\n\n")
            assert isinstance(event, h11.EndOfMessage)
        assert await gateway.wait() == 0
        assert "event=stopping" in gateway.log
        assert "Traceback" not in gateway.log
        assert token not in gateway.log


async def test_a_stop_does_not_wait_for_a_client_that_never_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatepass_gateway.server._DRAIN_SECONDS", 0.3)
    async with running_gateway(tmp_path) as gateway, raw_client(gateway.port) as stream:
        await stream.send(b"GET /silent HTTP/1.1\r\nHost: g\r\n\r\n")
        await eventually(lambda: gateway.upstream.requests)
        start = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        assert await read_all(stream) == b""
        assert 0.2 < time.monotonic() - start < 3
        await eventually(lambda: gateway.upstream.hangups)


async def test_a_stop_in_the_middle_of_a_frame_adds_nothing_to_it(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, raw_client(gateway.port) as stream:
        connect_frame = json.dumps(connect_message({"password": gateway.token()})).encode()
        await stream.send(UPGRADE + Frame(Opcode.TEXT, connect_frame).serialize(mask=True))
        await read_until(stream, b"hello-ok")
        await stream.send(Frame(Opcode.TEXT, b"half please").serialize(mask=True))
        await read_until(stream, b"x" * 500)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await read_all(stream) == b""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_restart_takes_the_port_at_once(tmp_path: Path) -> None:
    async with (
        process(tmp_path) as (gateway, _, minter),
        http_client(gateway.port) as client,
    ):
        assert (await client.request("GET", "/echo", bearer(minter.token()))).json()["identity"] == USER
        gateway.signal(signal.SIGINT)
        assert await gateway.wait() == 0
        (tmp_path / "gateway.log").unlink()
        await gateway.start()
        async with http_client(gateway.port) as again:
            assert (await again.request("GET", "/echo", bearer(minter.token()))).json()["identity"] == USER


class Ran(NamedTuple):
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """The command in this process, less what would change the process for the tests that follow."""
    monkeypatch.setattr("gatepass.daemon.process.harden", lambda: None)
    monkeypatch.setattr("gatepass.daemon.logs.configure_logs", lambda form: None)

    def command(*arguments: str) -> Ran:
        return Ran(main(arguments), *capsys.readouterr())

    return command


def write(directory: Path, tables: dict[str, Any]) -> str:
    directory.chmod(0o755)
    path = directory / "gateway.toml"
    path.write_text(to_toml(tables))
    path.chmod(0o600)
    return str(path)


def test_check_says_that_a_configuration_is_good(tmp_path: Path, run: Callable[..., Ran]) -> None:
    path = write(tmp_path, gateway_tables(2, port=1))
    done = run("--config", path, "--check")

    assert (done.code, done.stderr) == (0, "")
    assert done.stdout == f"{path}: no fault found; identities: 1\n"


def test_check_says_what_is_wrong_and_where(tmp_path: Path, run: Callable[..., Ran]) -> None:
    path = write(tmp_path, gateway_tables(2, port=1, limits={"waitng": 1}))
    done = run("--config", path, "--check")

    assert done.code == MISCONFIGURED
    assert done.stderr == f"gatepass-gateway: {path}: limits: there is no key 'waitng' here; did you mean 'waiting'?\n"


def test_a_port_that_is_taken_is_one_line(tmp_path: Path, run: Callable[..., Ran]) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        done = run("--config", write(tmp_path, gateway_tables(2, port=port)))

    assert done.code == MISCONFIGURED
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"127.0.0.1 port {port} cannot be listened on: Address already in use" in done.stderr


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_is_refused_is_logged_without_the_secret(tmp_path: Path) -> None:
    async with process(tmp_path, "--log-format", "json") as (gateway, _, minter):
        token = minter.token(age=1_000)
        async with http_client(gateway.port) as client:
            await client.request("GET", "/echo", bearer(token))
        async with connect(f"ws://127.0.0.1:{gateway.port}", proxy=None) as websocket:
            await next_json(websocket)
            await websocket.send(json.dumps(connect_message({"password": token})))
            await next_json(websocket)
        gateway.signal(signal.SIGTERM)
        await gateway.wait()
        lines = [json.loads(line) for line in gateway.log.splitlines()]

        assert {"refused", "login_refused"} <= {line["event"] for line in lines}
        assert token not in gateway.log
