"""Requests and frames that two servers read in two ways, that never end, or that come in masses."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import anyio
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from gatepass.errors import ConfigurationError
from gatepass_gateway import upstream
from gatepass_gateway.clients import Clients
from gatepass_gateway.listeners import listeners
from gatepass_gateway.sock_diag import SockDiag
from gatepass_gateway.trusted_proxy import Client
from support.gateway import (
    UPGRADE,
    acting_as,
    bearer,
    client_of,
    connect_message,
    eventually,
    free_port,
    login,
    next_json,
    raw_client,
    read_all,
    read_until,
    running_gateway,
)
from support.upstream import USER, USER_HEADER, running_upstream

root = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user")]
OTHER_UID = 33
SECRET = b"GET /hidden HTTP/1.1\r\nHost: g\r\nx-unguessable-user: derek@example.com\r\n\r\n"

REFUSED_SMUGGLING = {
    "CL.TE": b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "TE.CL": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n",
    "two lengths": b"Content-Length: 0\r\nContent-Length: 70\r\n\r\n",
    "two lengths in one": b"Content-Length: 0, 70\r\n\r\n",
    "a signed length": b"Content-Length: +70\r\n\r\n",
    "a length in hexadecimal": b"Content-Length: 0x46\r\n\r\n",
    "a length of another script": "Content-Length: \u0667\r\n\r\n".encode(),
    "a negative length": b"Content-Length: -1\r\n\r\n",
    "another coding": b"Transfer-Encoding: xchunked\r\n\r\n",
    "two codings": b"Transfer-Encoding: chunked, identity\r\n\r\n",
    "two coding headers": b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a blank before the colon": b"Transfer-Encoding : chunked\r\n\r\n",
    "a tab before the name": b"\tTransfer-Encoding: chunked\r\n\r\n"[1:].replace(b"T", b"\0T", 1),
    "a vertical tab": b"Transfer-Encoding:\x0bchunked\r\n\r\n",
    "a NUL in a value": b"X: a\0b\r\n\r\n",
    "a bare CR in a value": b"X: a\rTransfer-Encoding: chunked\r\n\r\n",
    "a broken chunk size": b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "a negative chunk size": b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
    "a chunk without its end": b"Transfer-Encoding: chunked\r\n\r\n1\r\nxGET / HTTP/1.1\r\n",
    "two hosts": b"Host: evil\r\n\r\n",
}


@pytest.mark.parametrize("rest", REFUSED_SMUGGLING.values(), ids=REFUSED_SMUGGLING.keys())
async def test_smuggling_by_a_length_that_can_be_read_in_two_ways(tmp_path: Path, rest: bytes) -> None:
    async with running_gateway(tmp_path) as gateway:
        answer = await gateway.raw(b"POST /echo HTTP/1.1\r\nHost: g\r\n" + rest + SECRET)

        assert answer.count(b"HTTP/1.1") == 1
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"/hidden" not in gateway.upstream.bytes_received
        assert len(gateway.upstream.requests) <= 1


UNDERSTOOD = {
    "the same length twice": (b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    "a body on GET": (b"Content-Length: 70\r\n\r\n" + SECRET[:70], SECRET[:70]),
    "a folded coding": (b"Transfer-Encoding:\r\n chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"hello"),
    "lines that end in LF": (b"X: y\nContent-Length: 5\n\nhello", b"hello"),
    "chunk extensions": (b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n", b"hello"),
    "a length that Connection names": (b"Connection: content-length\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    "trailers": (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nContent-Length: 9\r\n\r\n", b"hello"),
    "another upgrade": (b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
}


@pytest.mark.parametrize(("rest", "body"), UNDERSTOOD.values(), ids=UNDERSTOOD.keys())
async def test_what_is_understood_goes_on_in_a_form_that_has_one_meaning(
    tmp_path: Path, rest: bytes, body: bytes
) -> None:
    async with running_gateway(tmp_path) as gateway:
        head = b"GET /echo HTTP/1.1\r\nHost: g\r\n"
        answer = await gateway.raw(head + rest + b"GET /next HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
        first, second = gateway.upstream.requests

        assert answer.count(b"HTTP/1.1 200") == 2
        assert first.body == body
        assert (second.target, second.body) == ("/next", b"")
        framing = first.values("content-length") + first.values("transfer-encoding")
        assert framing in ([str(len(body))], ["chunked"])
        assert b"\n" not in bytes(gateway.upstream.raw[1]).partition(b"\r\n\r\n")[0].replace(b"\r\n", b"")
        assert first.values("upgrade") == []


@pytest.mark.parametrize(
    "upgrade",
    [
        UPGRADE.replace(b"\r\n\r\n", b"\r\nContent-Length: 70\r\n\r\n"),
        UPGRADE.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"),
        UPGRADE.replace(b"GET", b"POST"),
        UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"),
        UPGRADE.replace(b"\r\n\r\n", b"\r\nUpgrade: h2c\r\n\r\n"),
        UPGRADE.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n"),
        UPGRADE.replace(b"GET /", b"GET /?token=gatepass-none.x.y"),
    ],
)
async def test_a_request_hidden_behind_an_upgrade_that_the_proxy_refuses(tmp_path: Path, upgrade: bytes) -> None:
    async with running_gateway(tmp_path) as gateway:
        answer = await gateway.raw(upgrade + SECRET)

        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403"))
        assert answer.count(b"HTTP/1.1 4") == 1
        assert b"/hidden" not in gateway.upstream.bytes_received


async def test_a_request_hidden_behind_an_upgrade_that_the_gateway_refuses(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        gateway.upstream.websocket = "refuse"
        answer = await gateway.raw(UPGRADE + SECRET)

        assert answer.startswith(b"HTTP/1.1 403")
        assert answer.count(b"HTTP/1.1") == 1
        assert b"/hidden" not in gateway.upstream.bytes_received


@pytest.mark.parametrize("name", [b"Upgrade.", b"_Upgrade", b"Up_grade"])
async def test_an_upgrade_in_another_spelling_is_none(tmp_path: Path, name: bytes) -> None:
    async with running_gateway(tmp_path) as gateway:
        request = UPGRADE.replace(b"Upgrade: ", name + b": ").replace(b"Connection: Upgrade", b"Connection: close")
        answer = await gateway.raw(request + SECRET)

        assert answer.startswith(b"HTTP/1.1 200")
        assert b"/hidden" not in gateway.upstream.bytes_received


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02\x00\x01\x00", b"\0" * 100, b"GET\r\n\r\n", b"GET / HTTP/11\r\n\r\n"],
)
async def test_what_is_no_http(tmp_path: Path, data: bytes) -> None:
    async with running_gateway(tmp_path, limits={"head_seconds": 0.3}) as gateway:
        answer = await gateway.raw(data + b"\r\n\r\n")
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
        assert gateway.upstream.connected == 0


async def test_a_head_without_end_is_cut_off_at_a_size(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        answer = await gateway.raw(b"GET / HTTP/1.1\r\nHost: g\r\nX: " + b"x" * 200_000)
        assert answer.startswith(b"HTTP/1.1 400")


async def test_a_head_of_one_byte_at_a_time_is_cut_off_in_time(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, limits={"head_seconds": 0.3}) as gateway, raw_client(gateway.port) as stream:
        start = time.monotonic()
        with contextlib.suppress(anyio.BrokenResourceError):
            for _ in range(150):
                await stream.send(b"G")
                await anyio.sleep(0.02)
        assert time.monotonic() - start < 2


async def test_connections_that_are_reset_at_once_harm_nobody(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        for _ in range(100):
            with socket.create_connection(("127.0.0.1", gateway.port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await anyio.sleep(0.05)
        assert (await gateway.get("/echo")).status == 200


# The first WebSocket frame


def text_frame(payload: bytes, *, masked: bool = True) -> bytes:
    return Frame(Opcode.TEXT, payload).serialize(mask=masked)


def close_code(answer: bytes) -> int | None:
    """Return the code in the close frame at the end of what a raw client received."""
    at = answer.rfind(b"\x88")
    return int.from_bytes(answer[at + 2 : at + 4], "big") if at >= 0 else None


DEEP = b'{"type":"req","id":"1","method":"connect","params":{"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}}"
FIRST_FRAMES = {
    "unmasked": (text_frame(b"{}", masked=False), 1002),
    "of 100 MB": (b"\x81\xff" + (100_000_000).to_bytes(8, "big") + b"mask" + b"x" * 50_000, 1009),
    "of 2**63 bytes": (b"\x81\xff\x80" + bytes(7) + b"mask", 1002),
    "one byte too long": (b"\x81\xff" + (65_537).to_bytes(8, "big") + b"mask", 1009),
    "one byte too long in fragments": (
        Frame(Opcode.TEXT, b"x" * 65_536, fin=False).serialize(mask=True)
        + Frame(Opcode.CONT, b"x").serialize(mask=True),
        1009,
    ),
    "in ten thousand empty fragments": (
        Frame(Opcode.TEXT, b"", fin=False).serialize(mask=True)
        + Frame(Opcode.CONT, b"", fin=False).serialize(mask=True) * 10_000,
        1008,
    ),
    "a continuation of nothing": (Frame(Opcode.CONT, b"x").serialize(mask=True), 1002),
    "compressed": (b"\xc1\x80mask", 1002),
    "of an unknown kind": (b"\x83\x80mask", 1002),
    "a ping too long": (b"\x89\xfe\x01\x00mask", 1002),
    "a thousand pings": (Frame(Opcode.PING, b"x").serialize(mask=True) * 1_000, 1008),
    "nested deeply": (text_frame(DEEP), 1008),
    "no JSON": (text_frame(b"\xff\xfe"), 1008),
    "auth twice": (
        text_frame(b'{"type":"req","id":"1","method":"connect","params":{"auth":{},"auth":{"password":"x"}}}'),
        1008,
    ),
    "another method": (text_frame(b'{"type":"req","id":"1","method":"status","params":{}}'), 1008),
    "a close frame": (Frame(Opcode.CLOSE, b"\x0f\xa0bye").serialize(mask=True), 4000),
}


@pytest.mark.parametrize(("data", "code"), FIRST_FRAMES.values(), ids=FIRST_FRAMES.keys())
async def test_a_first_frame_that_is_none_ends_the_connection_and_nothing_goes_on(
    tmp_path: Path, data: bytes, code: int
) -> None:
    async with running_gateway(tmp_path) as gateway, raw_client(gateway.port) as stream:
        start = time.monotonic()
        await stream.send(UPGRADE)
        await read_until(stream, b"}}")
        await stream.send(data)
        answer = await read_until(stream, code.to_bytes(2, "big"))
        await stream.send_eof()
        answer += await read_all(stream)
        await eventually(gateway.upstream.sessions[0].ended.is_set)

        assert close_code(answer) == code
        assert gateway.upstream.sessions[0].messages == []
        assert time.monotonic() - start < 2
        async with gateway.login():
            pass


async def test_a_lone_surrogate_in_the_first_frame_goes_on_or_not_as_the_gateway_likes(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.websocket() as client:
        await next_json(client)
        text = json.dumps(connect_message({"password": gateway.token()}, locale="\ud800"))
        await client.send(text)
        assert (await next_json(client))["payload"]["auth"]["user"] == USER


async def test_a_hundred_idle_upgrades_of_one_user_stop_at_its_share(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, AsyncExitStack() as held:
        refused = 0
        for _ in range(100):
            stream = await held.enter_async_context(raw_client(gateway.port))
            await stream.send(UPGRADE)
            refused += b" 503 " in await read_until(stream, b"\r\n")
        assert refused == 94
        assert gateway.upstream.most_waiting == 6
        assert (await gateway.get("/echo", bearer(gateway.token()))).json()["identity"] == USER


async def test_idle_upgrades_with_a_token_stop_at_the_same_share(tmp_path: Path) -> None:
    """Whoever has a token of its own could else fill the gateway's places, which all identities share."""
    async with running_gateway(tmp_path) as gateway, AsyncExitStack() as held:
        upgrade = UPGRADE.replace(b"\r\n\r\n", f"\r\nAuthorization: Bearer {gateway.token()}\r\n\r\n".encode())
        refused = 0
        for _ in range(20):
            stream = await held.enter_async_context(raw_client(gateway.port))
            await stream.send(upgrade)
            refused += b" 503 " in await read_until(stream, b"\r\n")
        assert refused == 14
        assert gateway.upstream.most_waiting == 6


@pytest.mark.parametrize("mark", [pytest.param(None, marks=root)])
async def test_a_hundred_idle_upgrades_of_one_user_keep_no_other_user_out(tmp_path: Path, mark: None) -> None:
    async with running_gateway(tmp_path) as gateway, AsyncExitStack() as held:
        for _ in range(100):
            stream = await held.enter_async_context(client_of(gateway.port, OTHER_UID))
            await stream.send(UPGRADE)
            await read_until(stream, b"\r\n")
        async with gateway.login():
            pass
        assert gateway.upstream.most_waiting <= 8


@pytest.mark.parametrize("mark", [pytest.param(None, marks=root)])
async def test_who_makes_it_slow_to_look_at_connections_waits_for_that_himself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: None
) -> None:
    """As it is where the kernel's table of connections is full of theirs."""
    looked_at = slow_to_look(monkeypatch)
    async with running_gateway(tmp_path) as gateway, AsyncExitStack() as held:
        for _ in range(60):
            await held.enter_async_context(client_of(gateway.port, OTHER_UID))
        before = len(looked_at)
        assert (await gateway.get("/echo", bearer(gateway.token()))).json()["identity"] == USER
        # Two at most are before him: the one who has his turn, and the next of the other user's.
        assert looked_at.index(os.geteuid()) <= before + 2
        assert len(looked_at) < 60


async def test_who_has_no_place_left_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = slow_to_look(monkeypatch)
    async with running_gateway(tmp_path, limits={"connections_per_uid": 1}) as gateway, raw_client(gateway.port):
        for _ in range(3):
            async with raw_client(gateway.port) as stream:
                assert b" 503 " in await read_until(stream, b"\r\n")
    assert len(looked_at) == 1


def slow_to_look(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Let it take 0.1 s to see that a connection has one owner. Return whose were looked at, one after the other."""
    looked_at, look = list[int | None](), Clients.at_other_end

    def slowly(clients: Clients, connection: socket.socket) -> Client:
        time.sleep(0.1)
        found = look(clients, connection)
        looked_at.append(found.uid)
        return found

    monkeypatch.setattr(Clients, "at_other_end", slowly)
    return looked_at


async def test_idle_upgrades_end_and_their_places_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatepass_gateway.websocket_link._CLOSE_SECONDS", 0.1)  # for those who do not close
    limits = {"first_frame_seconds": 0.2, "waiting_per_uid": 2}
    async with running_gateway(tmp_path, limits=limits) as gateway, AsyncExitStack() as held:
        for _ in range(2):
            stream = await held.enter_async_context(raw_client(gateway.port))
            await stream.send(UPGRADE)
            await read_until(stream, b"}}")
        await eventually(lambda: all(session.ended.is_set() for session in gateway.upstream.sessions))
        with anyio.fail_after(5):
            while True:
                await anyio.sleep(0.1)
                async with raw_client(gateway.port) as stream:
                    await stream.send(UPGRADE)
                    if b"101" in await read_until(stream, b"\r\n"):
                        break


async def test_a_client_that_never_reads_its_answer_holds_up_nobody(tmp_path: Path) -> None:
    async with (
        running_gateway(tmp_path) as gateway,
        raw_client(gateway.port) as stream,
        anyio.create_task_group() as tasks,
    ):
        await stream.send(b"POST /duplex HTTP/1.1\r\nHost: g\r\nContent-Length: 50000000\r\n\r\n")

        async def fill() -> None:
            for _ in range(50):
                await stream.send(b"x" * 1_000_000)

        tasks.start_soon(fill)
        await anyio.sleep(0.2)
        start = time.monotonic()
        assert (await gateway.get("/echo")).status == 200
        assert time.monotonic() - start < 1
        tasks.cancel_scope.cancel()


# The gateway behind


@pytest.mark.parametrize("mark", [pytest.param(None, marks=root)])
async def test_another_user_on_the_gateways_port_gets_nothing(tmp_path: Path, mark: None) -> None:
    with acting_as(OTHER_UID):
        listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    async with running_upstream(listener=listener) as thief, running_gateway(tmp_path, upstream=thief) as gateway:
        answers = [await gateway.get("/echo"), await gateway.get("/echo", bearer(gateway.token()))]
        upgrade = await gateway.raw(UPGRADE)

        for answer in answers:
            assert (answer.status, answer.error["code"]) == (503, "gatepass_upstream_impostor")
            assert f"held by uid {OTHER_UID}" in answer.error["message"]
        assert upgrade.startswith(b"HTTP/1.1 503")
        await anyio.sleep(0.05)
        assert thief.connected == 0


async def test_a_gateway_that_is_swapped_while_the_proxy_connects_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody takes the port in the moment between the look and the connection."""
    connect = upstream._connect
    thieves: list[socket.socket] = []

    async with running_gateway(tmp_path) as gateway:

        async def connect_to_thief(connection: socket.socket, address: tuple[str, int]) -> None:
            gateway.upstream.listener.shutdown(socket.SHUT_RDWR)  # its cookie is gone, whoever listens there now
            thieves.append(socket.create_server(address))
            await connect(connection, address)

        monkeypatch.setattr(upstream, "_connect", connect_to_thief)
        answer = await gateway.get("/echo", bearer(gateway.token()))
        assert "it restarted in this moment" in answer.error["message"]
        with thieves[0] as thief, thief.accept()[0] as taken:
            taken.settimeout(5)
            assert await anyio.to_thread.run_sync(taken.recv, 100) == b""


async def test_the_thieves_of_a_session_cannot_send_frames_that_stop_the_proxy(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.login() as client:
        await gateway.upstream.sessions[1].send_raw(b"\xf3\xff\xff")
        with pytest.raises(ConnectionClosed):
            await client.recv()
        async with gateway.websocket() as other:
            assert (await login(other, {"password": gateway.token()}))["ok"]
        assert (await gateway.get("/echo", (USER_HEADER, USER))).status == 403


async def test_a_request_that_is_cut_off_in_its_body_is_no_fault(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        for _ in range(5):
            async with raw_client(gateway.port) as stream:
                await stream.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        assert (await gateway.get("/echo", bearer(gateway.token()))).status == 200


async def test_a_body_that_never_comes_gives_the_place_back(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, limits={"body_seconds": 0.3}) as gateway, raw_client(gateway.port) as stream:
        await stream.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        answer = await read_all(stream)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"nothing of the request's body came" in answer


IP_MINTTL = 21  # <linux/in.h>


@pytest.mark.parametrize("mark", [pytest.param(None, marks=root)])
async def test_a_socket_that_dials_back_in_the_moment_of_the_connection_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: None
) -> None:
    """Simultaneous open: a stranger's socket, bound to the gateway's port before the gateway was, dials the very port
    that the proxy dials from. The kernel gives it the connection, while the gateway's listener stays what it was.
    """
    with acting_as(OTHER_UID):
        thief = socket.socket()
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", 0))
    source = free_port()
    connect = upstream._connect

    async def connect_from_known_port(connection: socket.socket, address: tuple[str, int]) -> None:
        connection.close()
        connection.__init__(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)  # type: ignore[misc]
        connection.bind(("127.7.7.7", source))
        await connect(connection, address)

    async with (
        running_upstream(port=thief.getsockname()[1]) as behind,
        running_gateway(tmp_path, upstream=behind) as gateway,
    ):
        thief.setsockopt(socket.IPPROTO_IP, IP_MINTTL, 255)  # drops the reset that would end its attempt
        thief.setblocking(False)
        thief.connect_ex(("127.7.7.7", source))
        await anyio.sleep(0.1)
        thief.setsockopt(socket.IPPROTO_IP, IP_MINTTL, 0)
        monkeypatch.setattr(upstream, "_connect", connect_from_known_port)
        answer = await gateway.get("/echo", bearer(gateway.token()))
        assert answer.error["code"] == "gatepass_upstream_impostor"
        assert "took the connection" in answer.error["message"]
        thief.settimeout(5)
        assert await anyio.to_thread.run_sync(thief.recv, 100) == b""
        thief.close()


@pytest.mark.parametrize("mark", [pytest.param(None, marks=root)])
def test_a_port_with_a_strangers_sockets_is_not_listened_on(mark: None) -> None:
    """They could take other users' connections to the proxy by the same trick."""
    with acting_as(OTHER_UID):
        squatter = socket.socket()
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", 0))
    port = squatter.getsockname()[1]
    with SockDiag() as sock_diag, ExitStack() as parts:
        with squatter, pytest.raises(ConfigurationError, match=f"uid {OTHER_UID} holds sockets on port {port}"):
            listeners([("127.0.0.1", port)], [], sock_diag, parts)
        parts.close()
        [listener] = listeners([("127.0.0.1", port)], [], sock_diag, parts)
        assert listener.getsockname()[1] == port
