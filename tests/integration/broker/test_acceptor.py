"""Accepting on kernels whose pidfds do not come with connections, on both event loops."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from gatepass.client import Client
from gatepass_broker import acceptor as acceptor_module
from gatepass_broker import peer as peer_module
from gatepass_broker.acceptor import Acceptor
from gatepass_broker.peer import pidfds_come_with_connections
from gatepass_broker.pidfd import boottime
from support.broker import BrokerProcess, RawClient, error_code, in_thread, running_broker
from support.seccomp import can_refuse

TICK = 10**9 // os.sysconf("SC_CLK_TCK")


class Accepted(asyncio.Protocol):
    """Remembers what it was told."""

    def __init__(self, absent_at: int | None, everyone: list[Accepted]) -> None:
        self.absent_at = absent_at
        everyone.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport


class Listening(socket.socket):
    """Fails to accept as often as it is told to."""

    failures: list[int]
    when_empty: Callable[[], None] | None = None

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            raise OSError(self.failures.pop(), "")
        try:
            return super().accept()
        except BlockingIOError:
            if self.when_empty is not None:
                self.when_empty()
            raise


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    with Listening(socket.AF_UNIX) as bound:
        bound.failures = []
        bound.bind(str(tmp_path / "s"))
        bound.listen()
        bound.setblocking(False)
        yield bound


@asynccontextmanager
async def accepting(listening: Listening) -> AsyncIterator[list[Accepted]]:
    everyone: list[Accepted] = []
    acceptor = Acceptor(listening, lambda absent_at: Accepted(absent_at, everyone))
    try:
        yield everyone
    finally:
        acceptor.close()
        await until(lambda: not acceptor._begun)
        for accepted in everyone:
            accepted.transport.close()
        await anyio.lowlevel.checkpoint()


async def until(done: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not done():  # noqa: ASYNC110
            await anyio.sleep(0.001)


def connect(listening: socket.socket) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(listening.getsockname())
    return connection


async def test_a_connection_was_not_there_when_the_queue_was_last_empty(listening: Listening) -> None:
    async with accepting(listening) as everyone:
        begun = boottime()
        with connect(listening):
            await until(lambda: len(everyone) == 1)
            between = boottime()
            with connect(listening):
                await until(lambda: len(everyone) == 2)
        first, second = everyone
        assert first.absent_at is None
        assert second.absent_at is not None
        assert begun < second.absent_at < between


async def test_13_of_those_that_wait_together_none_is_settled_by_the_empty_queue_behind_it(
    listening: Listening,
) -> None:
    """By the time the second is looked at, the queue has been empty: after it had connected, and maybe exited."""
    async with accepting(listening) as everyone:
        with connect(listening):
            await until(lambda: len(everyone) == 1)
        before = boottime()
        waiting = [connect(listening) for _ in range(8)]  # the loop has had no turn
        await until(lambda: len(everyone) == 9)
        for accepted in everyone[1:]:
            assert accepted.absent_at is not None
            assert accepted.absent_at < before
        for connection in waiting:
            connection.close()


async def test_13_who_connects_as_soon_as_the_queue_was_seen_empty_was_not_there_before(listening: Listening) -> None:
    connected: list[tuple[int, socket.socket]] = []

    def connect_once() -> None:
        if not connected:
            connected.append((boottime(), connect(listening)))

    async with accepting(listening) as everyone:
        with connect(listening):
            listening.when_empty = connect_once
            await until(lambda: len(everyone) == 2)
    (at, connection) = connected[0]
    connection.close()
    assert everyone[1].absent_at is not None
    assert everyone[1].absent_at < at


async def test_13_while_the_queue_is_never_seen_empty_nobody_new_is_settled(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor_module, "AT_ONCE", 1)
    waiting = [connect(listening) for _ in range(4)]
    async with accepting(listening) as everyone:
        await until(lambda: len(everyone) == 4)
        assert [accepted.absent_at for accepted in everyone] == [None] * 4
    for connection in waiting:
        connection.close()


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENOMEM])
async def test_30_without_a_descriptor_accepting_pauses_and_goes_on(
    listening: Listening, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    monkeypatch.setattr(acceptor_module, "RETRY_SECONDS", 0.01)
    listening.failures = [error] * 3
    async with accepting(listening) as everyone:
        with connect(listening):
            await until(lambda: len(everyone) == 1)
        assert everyone[0].absent_at is None  # what could not be accepted was waiting


async def test_30_a_client_that_gives_up_holds_up_no_other(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor_module, "RETRY_SECONDS", 60)
    listening.failures = [errno.ECONNABORTED] * 3
    async with accepting(listening) as everyone:
        with connect(listening):
            await until(lambda: len(everyone) == 1)


async def test_closed_while_it_pauses_it_accepts_no_more(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor_module, "RETRY_SECONDS", 0.01)
    listening.failures = [errno.EMFILE]
    with connect(listening):
        async with accepting(listening) as everyone:
            await until(lambda: not listening.failures)
        await anyio.sleep(0.03)
        assert everyone == []


def test_this_kernel_is_asked_once_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    pidfds_come_with_connections()
    monkeypatch.setattr(peer_module, "_peer_pidfd", lambda connection: None)
    assert not pidfds_come_with_connections()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_a_broker_on_such_a_kernel_knows_its_caller_on_the_second_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_module, "_peer_pidfd", lambda connection: None)
    async with running_broker(tmp_path) as broker:
        connections = broker.server.house.registry
        with RawClient(broker.socket) as first:
            assert error_code(await in_thread(lambda: first.ask(op="issue"))) == "connect_again"
            with RawClient(broker.socket) as second:
                assert (await in_thread(lambda: second.ask(op="issue")))["ok"]
                callers = [peer.caller for peer in (one._peer for one in connections.everyone()) if peer is not None]
    assert sorted(caller.unsettled for caller in callers) == [False, True]
    settled, young = sorted(callers, key=lambda caller: caller.unsettled)
    assert (settled.pid, settled.nested) == (os.getpid(), False)
    assert (young.pid, young.process, young.cgroup, young.nested) == (os.getpid(), None, None, None)


@pytest.mark.skipif(not can_refuse(), reason="needs a machine whose system call numbers the test knows")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("kernel", ["6.1", "5.2"])
def test_a_broker_process_on_an_old_kernel_serves(tmp_path: Path, kernel: str, loop: str) -> None:
    script = (
        "import os, sys; from support.seccomp import OLD_KERNELS, refuse;"
        "refuse(*OLD_KERNELS[sys.argv[1]]); os.execv(sys.argv[2], sys.argv[2:])"
    )
    env = ["env", f"PYTHONPATH={Path(__file__).parents[2]}"]
    prefix = [*env, sys.executable, "-c", script, kernel]
    with BrokerProcess(tmp_path, prefix=prefix, options=["--loop", loop]) as broker:
        for _ in range(3):
            with Client(str(broker.socket)) as client:
                assert client.issue().token
