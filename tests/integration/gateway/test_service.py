"""The proxy as a service of systemd: sockets handed over, what it says of itself, and its watchdog."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream

from gatepass.clock import Moment, now
from gatepass.daemon import pulse
from gatepass.daemon.systemd import Notifier
from gatepass_gateway import listeners, server
from support.fake_broker import running_followed
from support.gateway import (
    ISSUER,
    GatewayProcess,
    Minter,
    bearer,
    eventually,
    free_port,
    gateway_tables,
    gateway_that_is_down,
    http_client,
    raw_client,
    read_all,
    running_gateway,
)
from support.manager import TestManager
from support.upstream import USER, FakeGateway, running_upstream

CLIENTS = 16
RESTARTS = 3


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[TestManager]:
    with TestManager(tmp_path) as manager:
        yield manager


def hold_port(manager: TestManager) -> int:
    """Have the manager listen where a socket unit would."""
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        port: int = listener.getsockname()[1]
        manager.sockets["gateway"] = [
            socket.create_server(("::1", port), family=socket.AF_INET6, backlog=1024),
            socket.socket(fileno=listener.detach()),
        ]
    return port


@asynccontextmanager
async def service_of(
    manager: TestManager, directory: Path, **changes: Any
) -> AsyncIterator[tuple[GatewayProcess, FakeGateway, Minter]]:
    minter = Minter()
    (directory / "jwks.json").write_text(json.dumps(minter.jwks()))
    listen = {"port": hold_port(manager), "addresses": ["127.0.0.1", "::1"]}
    keys = {"jwks_file": str(directory / "jwks.json"), "issuer": ISSUER}
    async with running_upstream() as upstream:
        tables = gateway_tables(upstream.port, listen=listen, keys=keys, **changes)
        async with GatewayProcess(directory, tables, manager=manager) as gateway:
            yield gateway, upstream, minter


async def heard(manager: TestManager, wanted: str, seconds: float = 10) -> dict[str, str]:
    """Wait for what the manager is told, and leave the event loop to the proxy meanwhile."""
    return await anyio.to_thread.run_sync(manager.listen, wanted, seconds)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_sockets_handed_over_are_served_and_the_manager_is_told(tmp_path: Path, manager: TestManager) -> None:
    async with service_of(manager, tmp_path) as (gateway, _, minter):
        told = await heard(manager, "READY=1")
        for host in ("127.0.0.1", "::1"):
            async with raw_client(gateway.port, host) as stream:
                name, value = bearer(minter.token())
                await stream.send(f"GET /echo HTTP/1.0\r\n{name}: {value}\r\n\r\n".encode())
                assert USER.encode() in await read_all(stream)
        gateway.signal(signal.SIGTERM)
        await heard(manager, "STOPPING=1")

        assert await gateway.wait() == 0
        assert told["STATUS"] == f"connections: 0, sessions: 0; keys of {ISSUER} known"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_restart_under_load_loses_no_connection(tmp_path: Path, manager: TestManager) -> None:
    answers: list[bytes] = []
    going_on = True

    async def ask_again_and_again(port: int, request: bytes) -> None:
        while going_on:
            async with raw_client(port) as stream:
                await stream.send(request)
                answers.append(await read_all(stream))

    async with service_of(manager, tmp_path) as (gateway, _, minter), anyio.create_task_group() as clients:
        name, value = bearer(minter.token())
        request = f"GET /echo HTTP/1.1\r\nHost: g\r\nConnection: close\r\n{name}: {value}\r\n\r\n".encode()
        for _ in range(CLIENTS):
            clients.start_soon(ask_again_and_again, gateway.port, request)
        for _ in range(RESTARTS):
            await eventually(partial(_has_grown, answers, len(answers) + CLIENTS))
            gateway.signal(signal.SIGTERM)
            assert await gateway.wait() == 0
            await gateway.start()
        going_on = False

    assert [answer for answer in answers if not answer.startswith(b"HTTP/1.1 200") or USER.encode() not in answer] == []


def _has_grown(answers: list[bytes], size: int) -> bool:
    return len(answers) > size


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_was_taken_just_before_the_stop_is_still_answered(tmp_path: Path, manager: TestManager) -> None:
    async with service_of(manager, tmp_path) as (gateway, _, minter):
        async with raw_client(gateway.port) as early, raw_client(gateway.port) as late:
            await eventually(lambda: _taken(gateway.port) == 2)
            gateway.signal(signal.SIGTERM)
            await heard(manager, "STOPPING=1")
            await anyio.sleep(0.2)
            name, value = bearer(minter.token())
            await early.send(f"GET /echo HTTP/1.1\r\nHost: g\r\n{name}: {value}\r\n\r\n".encode())
            assert USER.encode() in await read_all(early)
            assert await read_all(late) == b""  # nothing came: it does not hold up the stop
        assert await gateway.wait() == 0


def _taken(port: int) -> int:
    """How many connections to the port are no longer in its queue: they have an inode."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return len([line for line in lines if line[1].endswith(f":{port:04X}") and line[3] == "01" and line[9] != "0"])


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_sockets_that_the_configuration_does_not_name_end_the_start(tmp_path: Path, manager: TestManager) -> None:
    hold_port(manager)
    tables = gateway_tables(2)
    gateway = GatewayProcess(tmp_path, tables, manager=manager)
    with pytest.raises(AssertionError, match="the proxy ended"):
        await gateway.start()
    assert "which is not configured; give listen.port and listen.addresses" in gateway.log
    assert await gateway.wait() == 6


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="needs systemd-socket-activate (systemd)")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_systemds_own_activation_works(tmp_path: Path) -> None:
    minter, port = Minter(), free_port()
    (tmp_path / "jwks.json").write_text(json.dumps(minter.jwks()))
    async with running_upstream() as upstream:
        listen = {"port": port, "addresses": ["127.0.0.1", "::1"]}
        tables = gateway_tables(upstream.port, listen=listen, keys={"jwks_file": str(tmp_path / "jwks.json")})
        config = GatewayProcess(tmp_path, tables).config
        command = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "-l", f"[::1]:{port}"]
        command += [sys.executable, "-m", "gatepass_gateway", "--config", str(config)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as activated:  # noqa: ASYNC220
            try:
                await eventually(lambda: _listens(port))
                async with http_client(port) as client:  # this is what starts it
                    answer = await client.request("GET", "/echo", bearer(minter.token()))
                assert answer.json()["identity"] == USER
            finally:
                activated.terminate()


def _listens(port: int) -> bool:
    return any(f":{port:04X} 00000000:0000 0A" in line for line in Path("/proc/net/tcp").read_text().splitlines())


# In this event loop, so that its parts can be made to fail


@asynccontextmanager
async def told_by_gateway(
    directory: Path, manager: TestManager, watchdog_seconds: float | None = None, **changes: Any
) -> AsyncIterator[Any]:
    notifier = Notifier(str(directory / "notify.sock"), watchdog_seconds)
    async with running_gateway(directory, notifier=notifier, **changes) as gateway:
        await heard(manager, "READY=1")
        yield gateway


async def test_the_status_says_how_many_there_are_when_that_changes(
    tmp_path: Path, manager: TestManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "STATUS_SECONDS", 0.05)
    known = f"keys of {ISSUER} known"
    async with told_by_gateway(tmp_path, manager) as gateway:
        async with gateway.login(), raw_client(gateway.port):
            await heard(manager, f"STATUS=connections: 2, sessions: 1; {known}")
        await heard(manager, f"STATUS=connections: 0, sessions: 0; {known}")
        await anyio.sleep(0.3)
        manager.drain()
        assert manager.told == []


async def test_without_keys_the_status_says_that_no_token_counts(tmp_path: Path, manager: TestManager) -> None:
    notifier = Notifier(str(tmp_path / "notify.sock"))
    async with running_gateway(tmp_path, notifier=notifier, keys={"broker_socket": str(tmp_path / "none.sock")}):
        told = await heard(manager, "READY=1")
    assert told["STATUS"] == "connections: 0, sessions: 0; no key known yet: no token counts"


async def test_the_status_says_that_it_is_locked_and_that_the_broker_is_away(
    tmp_path: Path, manager: TestManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "STATUS_SECONDS", 0.05)
    notifier, started, passed = Notifier(str(tmp_path / "notify.sock")), now(), [0.0]

    def clock() -> Moment:
        return started._replace(boottime=started.boottime + passed[0])

    start = f"STATUS=connections: 0, sessions: 0; keys of {ISSUER} known"
    async with running_followed(tmp_path, notifier=notifier, clock=clock) as (_, broker):
        await heard(manager, start)
        await broker.lock()
        await heard(manager, f"{start}; locked: nobody logs in")
        await broker.unlock()
        await heard(manager, start)
        broker.stop()
        left = "the broker has been away for {} s: what it said last counts for another {} s"
        await heard(manager, f"{start}; {left.format(0, 3_600)}")
        passed[0] = 1_000
        await heard(manager, f"{start}; {left.format(1_000, 2_600)}")
        passed[0] = 4_000
        await heard(manager, f"{start}; the broker has been away for 4000 s: nobody logs in until it is back")
        await broker.start()
        await heard(manager, start)


async def test_a_proxy_that_answers_is_left_alone_whatever_the_gateway_behind_does(
    tmp_path: Path, manager: TestManager
) -> None:
    async with told_by_gateway(tmp_path, manager, 0.15, upstream=gateway_that_is_down()):
        for _ in range(3):
            await heard(manager, "WATCHDOG=1")


async def test_a_proxy_that_is_full_answers_too(tmp_path: Path, manager: TestManager) -> None:
    async with (
        told_by_gateway(tmp_path, manager, 0.3, limits={"connections": 1, "connections_per_uid": 1}) as gateway,
        raw_client(gateway.port),
    ):
        await anyio.sleep(0.2)
        manager.drain()
        for _ in range(3):
            await heard(manager, "WATCHDOG=1")


async def test_where_files_are_few_no_user_takes_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_connections_possible", lambda: 8)
    async with (
        running_gateway(tmp_path) as gateway,  # 512 connections, 128 of one user: a quarter
        raw_client(gateway.port),
        raw_client(gateway.port),
        raw_client(gateway.port) as third,
    ):
        assert b"too many connections" in await read_all(third)


async def _hang(_: object, connection: object, *__: object) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        if isinstance(connection, socket.socket):
            connection.close()


async def _hang_up(_: object, stream: SocketStream, *__: object) -> None:
    await stream.aclose()


@pytest.mark.parametrize(
    ("part", "broken"),
    [("accept_from", _hang), ("_serve", _hang), ("_serve_stream", _hang), ("_serve_stream", _hang_up)],
    ids=["takes no connection", "does not look at connections", "does not read", "hangs up"],
)
async def test_a_proxy_that_serves_nobody_is_not_petted_though_its_loop_runs(
    tmp_path: Path, manager: TestManager, monkeypatch: pytest.MonkeyPatch, part: str, broken: Any
) -> None:
    monkeypatch.setattr(server._Proxy, part, broken)
    # An eighth of this is long enough on a busy machine for a connection: one that is not made in time says nothing of
    # the proxy, and it is petted.
    async with told_by_gateway(tmp_path, manager, 4) as gateway:
        unanswered = "the proxy does not answer itself"
        await eventually(lambda: [entry["event"] for entry in gateway.logs].count(unanswered) >= 2)
        manager.drain()
        assert manager.told == []


async def _let_others_in(_: object, __: object, queue: pulse.Queue, ___: object) -> None:
    while True:
        await anyio.sleep(0.01)
        queue.taken += 1


async def test_a_proxy_with_a_long_queue_is_petted_as_long_as_that_moves(
    tmp_path: Path, manager: TestManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any user can make a queue so long that what the proxy asks itself is not let in in time."""
    monkeypatch.setattr(server._Proxy, "accept_from", _let_others_in)
    async with told_by_gateway(tmp_path, manager, 2):
        for _ in range(3):
            await heard(manager, "WATCHDOG=1")


async def test_a_proxy_that_takes_nobody_is_not_petted_when_its_queue_is_full_either(
    tmp_path: Path, manager: TestManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it asks itself then waits for its turn, which says nothing: any user can fill the queue of a busy proxy."""
    monkeypatch.setattr(listeners, "_BACKLOG", 1)
    monkeypatch.setattr(server._Proxy, "accept_from", _hang)
    async with told_by_gateway(tmp_path, manager, 0.3) as gateway:
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", gateway.port))
        try:
            await eventually(
                lambda: "nobody is let in, and somebody waits" in [entry["event"] for entry in gateway.logs]
            )
            manager.drain()
            manager.told.clear()
            await anyio.sleep(0.4)
            manager.drain()
            assert manager.told == []
        finally:
            for client in waiting:
                client.close()


async def test_a_proxy_that_recovers_is_petted_again(
    tmp_path: Path, manager: TestManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(server._Proxy, "_serve_stream", _hang)
        async with told_by_gateway(tmp_path, manager, 0.15) as gateway:
            await eventually(lambda: "the proxy does not answer itself" in [entry["event"] for entry in gateway.logs])
            broken.undo()
            await heard(manager, "WATCHDOG=1")


async def test_a_loop_that_hangs_is_not_petted(tmp_path: Path, manager: TestManager) -> None:
    async with told_by_gateway(tmp_path, manager, 0.15):
        await heard(manager, "WATCHDOG=1")
        manager.drain()
        manager.told.clear()
        time.sleep(0.5)  # noqa: ASYNC251 - that is the fault
        manager.drain()
        assert manager.told == []
        await heard(manager, "WATCHDOG=1")
