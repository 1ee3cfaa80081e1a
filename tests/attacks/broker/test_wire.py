"""Attacks 26 to 32 (docs/threat-model.md): what a client may send, or not send, and how many of them there may be."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import time
from pathlib import Path
from typing import Any

import anyio
import msgpack
import pytest

from gatepass.frames import encode_frame
from support.broker import BrokerProcess, RawClient, ask, error_code, in_thread, running_broker


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def packed(value: Any) -> bytes:
    return frame(msgpack.packb(value))


def request(**fields: Any) -> dict[str, Any]:
    return {"v": 1, "id": 1, "op": "issue", **fields}


BROKEN = {
    "26_length_beyond_the_bound": b"\x00\x01\x00\x01",
    "26_length_of_4_gb": b"\xff\xff\xff\xff\x80",
    "26_map_of_4_billion": frame(b"\xdf\xff\xff\xff\xff"),
    "26_array_of_4_billion": frame(b"\xdd\xff\xff\xff\xff"),
    "26_string_of_4_gb": frame(b"\xdb\xff\xff\xff\xff"),
    "27_deep_nesting": frame(b"\x91" * 60_000 + b"\xc0"),
    "27_nine_levels": packed({"v": 1, "id": 1, "op": [[[[[[[[[1]]]]]]]]]}),
    "28_duplicate_key": frame(b"\x82\xa1v\x01\xa1v\x01"),
    "28_ext_type": packed(request(x=msgpack.ExtType(1, b"a"))),
    "28_timestamp": packed(request(x=msgpack.Timestamp(1))),
    "28_nan": packed(request(ttl=float("nan"))),
    "28_float": packed(request(ttl=1.0)),
    "28_binary": packed(request(audience=b"openclaw")),
    "28_not_utf8": frame(b"\x81\xa2\xff\xfe\x01"),
    "28_trailing_bytes": frame(msgpack.packb(request()) + b"\x00"),
    "28_not_a_map": packed([1, 2]),
    "28_integer_key": packed({1: 2}),
    "28_empty": frame(b""),
    "28_id_true": packed(request(id=True)),
    "28_id_negative": packed(request(id=-1)),
    "28_id_missing": packed({"v": 1, "op": "issue"}),
    "28_version_true": packed(request(v=True)),
    "28_version_missing": packed({"id": 1, "op": "issue"}),
    "28_version_2": packed(request(v=2)),
    "28_http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown_parameter": ({"identity": "root"}, "invalid_request"),
    "unknown_operation": ({"op": "give"}, "unknown_operation"),
    "operation_of_another_type": ({"op": 1}, "unknown_operation"),
    "ttl_zero": ({"ttl": 0}, "invalid_request"),
    "ttl_negative": ({"ttl": -5}, "invalid_request"),
    "ttl_true": ({"ttl": True}, "invalid_request"),
    "ttl_huge": ({"ttl": 2**40}, "invalid_request"),
    "ttl_null": ({"ttl": None}, "invalid_request"),
    "audience_with_newline": ({"audience": "open\nclaw"}, "invalid_request"),
    "audience_a_list": ({"audience": ["openclaw"]}, "invalid_request"),
    "scope_too_long": ({"scope": "x" * 5_000}, "invalid_request"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_frame_ends_that_connection_and_no_other(tmp_path: Path, name: str) -> None:
    async with running_broker(tmp_path) as broker:

        def talk() -> None:
            with RawClient(broker.socket) as good, RawClient(broker.socket) as bad:
                bad.send(BROKEN[name])
                reply = bad.receive()
                assert reply is not None
                assert error_code(reply) in ("malformed", "unsupported_version")
                assert bad.is_closed()
                assert good.ask(op="issue")["ok"]

        await in_thread(talk)


async def test_a_wrong_request_is_answered_and_the_connection_goes_on(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as broker:

        def talk() -> None:
            with RawClient(broker.socket) as client:
                for changes, code in WRONG.values():
                    fields: dict[str, Any] = {"op": "issue", **changes}
                    reply = client.ask(**fields)
                    assert error_code(reply) == code, changes
                assert client.ask(op="issue")["ok"]

        await in_thread(talk)


async def test_29_one_byte_now_and_then_wins_no_time(tmp_path: Path) -> None:
    async with running_broker(tmp_path, limits={"frame_seconds": 0.3, "idle_seconds": 30}) as broker:

        def trickle() -> float:
            data = encode_frame(request())
            begin = time.monotonic()
            with RawClient(broker.socket) as client:
                client.socket.settimeout(0.05)
                for byte in data:
                    try:
                        client.send(bytes([byte]))
                        if not client.socket.recv(1):
                            break
                    except TimeoutError:
                        continue
                    except OSError:
                        break
            return time.monotonic() - begin

        assert 0.25 < await in_thread(trickle) < 1.0


async def test_29_a_silent_client_is_sent_away(tmp_path: Path) -> None:
    async with running_broker(tmp_path, limits={"idle_seconds": 0.2}) as broker:
        with RawClient(broker.socket) as client:
            assert await in_thread(client.is_closed)


async def test_29_a_client_that_asks_stays(tmp_path: Path) -> None:
    async with running_broker(tmp_path, limits={"idle_seconds": 0.3}) as broker:

        def talk() -> None:
            with RawClient(broker.socket) as client:
                for _ in range(6):
                    time.sleep(0.1)
                    assert client.ask(op="issue")["ok"]

        await in_thread(talk)


async def test_29_a_follower_may_be_silent(tmp_path: Path) -> None:
    async with running_broker(tmp_path, limits={"idle_seconds": 0.1, "frame_seconds": 0.1}) as broker:
        with RawClient(broker.socket) as client:
            await in_thread(lambda: client.ask(op="follow"))
            await anyio.sleep(0.4)
            assert len(broker.server.house.registry) == 1


def is_cut_off(client: RawClient, data: bytes) -> None:
    """Wait until the broker has closed a connection that it does not read from."""
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        try:
            client.send(data)
        except (BrokenPipeError, ConnectionResetError):
            return
        except TimeoutError:
            continue
    raise AssertionError("the broker keeps the connection")


async def test_29_a_client_that_never_reads_is_cut_off_and_costs_little(tmp_path: Path) -> None:
    async with running_broker(tmp_path, limits={"frame_seconds": 0.3}) as broker:

        def flood() -> None:
            data = b"".join(encode_frame(request()) for _ in range(200))
            with RawClient(broker.socket, timeout=0.1) as client:
                sent = 0
                try:
                    for _ in range(2_000):
                        client.send(data)
                        sent += len(data)
                except TimeoutError:
                    pass
                except OSError:
                    return
                assert sent < 8_000_000, "the broker read on and on"
                is_cut_off(client, data)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(in_thread, flood)
            for _ in range(5):
                assert (await broker.ask(op="issue"))["ok"]
        with anyio.fail_after(5):
            while len(broker.server.house.registry):  # noqa: ASYNC110
                await anyio.sleep(0.01)


async def test_30_the_oldest_idle_connection_makes_room(tmp_path: Path) -> None:
    async with running_broker(tmp_path, limits={"connections_per_uid": 5}) as broker:

        def talk() -> None:
            clients = []
            for _ in range(20):
                clients.append(RawClient(broker.socket))
                assert clients[-1].ask(op="issue")["ok"]
            assert [client.is_closed() for client in clients[:15]] == [True] * 15
            assert all(client.ask(op="issue")["ok"] for client in clients[15:])
            for client in clients:
                client.socket.close()

        await in_thread(talk)


async def test_30_when_nobody_can_go_the_answer_is_try_later(tmp_path: Path) -> None:
    async with running_broker(tmp_path, limits={"connections_per_uid": 2}) as broker:

        def talk() -> None:
            with RawClient(broker.socket) as one, RawClient(broker.socket) as two:
                one.ask(op="follow")
                two.ask(op="follow")
                with RawClient(broker.socket) as third:
                    reply = third.receive()
                    assert reply is not None
                    assert error_code(reply) == "unavailable"
                    assert reply["error"]["retry_after"] == 1
                    assert third.is_closed()

        await in_thread(talk)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_30_a_flood_of_connections_with_few_descriptors(tmp_path: Path, loop: str) -> None:
    """More connections at once than the process may have files: it neither ends nor spins, and serves on."""

    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))

    limits = {"connections": 500, "connections_per_uid": 500}
    broker = BrokerProcess(tmp_path, options=["--loop", loop], limits=limits)
    try:
        broker.start(preexec_fn=few_files)
        assert "fewer connections than configured" in broker.log
        broker.signal(signal.SIGSTOP)
        clients = [RawClient(broker.socket) for _ in range(250)]
        broker.signal(signal.SIGCONT)
        assert ask(broker.socket, op="issue")["ok"]
        before = cpu_seconds(broker.pid)
        time.sleep(0.3)
        assert cpu_seconds(broker.pid) - before < 0.15
        for client in clients:
            client.socket.close()
        assert ask(broker.socket, op="issue")["ok"]
        assert broker.stop() == 0
    finally:
        broker.__exit__(None, None, None)


async def test_30_who_is_sent_away_keeps_no_descriptor_by_not_reading(tmp_path: Path) -> None:
    limits = {"connections_per_uid": 1, "frame_seconds": 30}
    async with running_broker(tmp_path, limits=limits) as broker:

        def talk() -> None:
            data = b"".join(encode_frame(request()) for _ in range(1_000))
            before = descriptors()
            clients = []
            for _ in range(6):
                clients.append(RawClient(broker.socket, timeout=0.05))
                with contextlib.suppress(TimeoutError):
                    for _ in range(200):
                        clients[-1].send(data)
            limit = time.monotonic() + 5  # a busy machine; long before a slow client is cut off for being that
            while descriptors() > before + len(clients) + 3:
                assert time.monotonic() < limit
                time.sleep(0.01)
            for client in clients:
                client.socket.close()

        await in_thread(talk)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def test_31_requests_of_one_connection_do_not_keep_others_waiting(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as broker:

        def flood() -> None:
            data = b"".join(encode_frame(request()) for _ in range(100))
            with RawClient(broker.socket) as client:
                for _ in range(6):
                    client.send(data)
                    for _ in range(100):
                        assert client.receive()

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(in_thread, flood)
            slowest = 0.0
            for _ in range(6):
                begin = time.monotonic()
                assert (await broker.ask(op="issue"))["ok"]
                slowest = max(slowest, time.monotonic() - begin)
        assert slowest < 1.0


async def test_a_half_open_connection_is_forgotten(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as broker:
        with RawClient(broker.socket) as client:
            client.send(encode_frame(request())[:5])
            client.socket.shutdown(socket.SHUT_WR)
            assert await in_thread(client.is_closed)
