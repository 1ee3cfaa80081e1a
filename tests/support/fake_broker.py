"""The broker as a gateway sees it: keys and what is cut off, pushed when a test says so, and reports, recorded."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from gatepass.frames import FrameDecoder, Message, encode_frame
from gatepass.revocations import Cut, Revocation, Standing, standing_to_wire
from gatepass.sessions import LeftBehind, Session, record_from_wire
from support.gateway import SECONDS, Minter, TestGateway, eventually, running_gateway
from support.upstream import FakeGateway

FAR = 2**40
"""A moment that no token is issued after."""


_GONE = (anyio.EndOfStream, anyio.BrokenResourceError, OSError)


class FakeBroker:
    """One of these at a time listens on a path; its followers are told everything, and it believes what they report."""

    def __init__(self, path: Path, minter: Minter) -> None:
        self.path = path
        self.minter = minter
        self.seq = 1
        self.standing = Standing()
        self.names: list[str | None] = []
        """What followers call themselves, one for each connection."""
        self.reports: list[Message] = []
        self.sessions: dict[str, Session] = {}
        self.ever: dict[str, Session] = {}
        self.left_behind: list[LeftBehind] = []
        self.error: Message | None = None
        """Answers every report, if it is not None."""
        self.answers = True
        self._followers: dict[anyio.abc.SocketStream, int] = {}
        self._heard = anyio.Event()
        self._tasks: anyio.abc.TaskGroup | None = None
        self._listening = anyio.CancelScope()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen for the time of the block, but where a test stops it."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            await self.start()
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def start(self) -> None:
        """Listen, again."""
        assert self._tasks is not None
        self.path.unlink(missing_ok=True)
        self._listening = anyio.CancelScope()
        self._tasks.start_soon(self._listen, await anyio.create_unix_listener(self.path, mode=0o600))

    def stop(self) -> None:
        """End all connections, and take no more."""
        self._listening.cancel()

    async def _listen(self, listener: anyio.abc.SocketListener) -> None:
        with self._listening:
            async with listener:
                await listener.serve(self._serve)

    def message(self) -> Message:
        """Return what followers are told now."""
        keys = self.minter.jwks()["keys"]
        return {"seq": self.seq, "issuer": self.minter.issuer, "keys": keys, **standing_to_wire(self.standing)}

    async def push(self, standing: Standing) -> None:
        """Tell followers, and return when they have acted, as `revoke` does."""
        await self.tell(standing)
        await self.confirmed()

    async def tell(self, standing: Standing) -> None:
        """Tell followers and do not wait."""
        self.standing = standing
        self.seq += 1
        for stream in list(self._followers):
            with contextlib.suppress(*_GONE):
                await stream.send(encode_frame({"id": 1, "ok": True, **self.message()}))

    async def confirmed(self) -> None:
        """Wait until every follower has acted on all that it was told."""
        with anyio.fail_after(SECONDS):
            while not self._followers or min(self._followers.values()) < self.seq:
                await self._heard.wait()

    def closed_by(self, seq: int) -> set[str]:
        """Return the sessions that were reported as closed up to the report in which `seq` was confirmed."""
        closed: set[str] = set()
        for report in self.reports:
            closed.update(report["closed"])
            if report["seq"] >= seq:
                break
        return closed

    async def revoke(self, by: Cut, value: str = "", issued_until: int = FAR) -> None:
        """Revoke, and return when it is done."""
        revocation = Revocation(by, value, issued_until)
        await self.push(self.standing._replace(revocations=(*self.standing.revocations, revocation)))

    async def lock(self) -> None:
        """Lock, and return when it is done."""
        await self.push(self.standing._replace(locked=True))

    async def unlock(self) -> None:
        """Unlock, and return when it is done."""
        await self.push(self.standing._replace(locked=False))

    def drop(self) -> None:
        """Lose all connections, as by a restart."""
        for stream in self._followers:
            stream.extra(anyio.abc.SocketAttribute.raw_socket).shutdown(socket.SHUT_RDWR)

    async def has_sessions(self, number: int) -> None:
        """Wait until so many sessions have been reported as open."""
        await eventually(lambda: len(self.sessions) == number)

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        own: set[str] = set()
        try:
            async with stream:
                with contextlib.suppress(*_GONE):
                    await self._converse(stream, own)
        finally:
            self._followers.pop(stream, None)
            self._hear()
            for session in own:
                self.sessions.pop(session, None)

    async def _converse(self, stream: anyio.abc.SocketStream, own: set[str]) -> None:
        decoder = FrameDecoder()
        while True:
            while (request := decoder.next_message()) is None:
                decoder.feed(await _receive(stream))
            if request["op"] == "follow":
                self.names.append(request.get("name"))
                self._followers[stream] = -1
                await stream.send(encode_frame({"id": request["id"], "ok": True, **self.message()}))
                continue
            assert request["op"] == "report"
            assert request["id"] >= 2
            self._take(request, own)
            if self.error is not None:
                await stream.send(encode_frame({"id": request["id"], "ok": False, "error": self.error}))
                continue
            if self.answers:
                await stream.send(encode_frame({"id": request["id"], "ok": True}))
            self._followers[stream] = request["seq"]
            self._hear()

    def _hear(self) -> None:
        self._heard.set()
        self._heard = anyio.Event()

    def _take(self, report: Message, own: set[str]) -> None:
        self.reports.append(report)
        assert len(report["opened"]) <= 100
        for record in report["opened"]:
            session = record_from_wire(Session, record)
            self.sessions[session.id] = self.ever[session.id] = session
            own.add(session.id)
        for session_id in report["closed"]:
            assert session_id in own, "a session ends that never was"
            del self.sessions[session_id]
            own.remove(session_id)
        self.left_behind += [record_from_wire(LeftBehind, record) for record in report["left_behind"]]


async def _receive(stream: anyio.abc.SocketStream) -> bytes:
    """Receive as the stream does, but take no harm from being cancelled in the moment when something arrives."""
    connection = stream.extra(anyio.abc.SocketAttribute.raw_socket)
    await anyio.wait_readable(connection)
    data: bytes = connection.recv(65_536)
    if not data:
        raise anyio.EndOfStream
    return data


@asynccontextmanager
async def running_followed(
    directory: Path, *, upstream: FakeGateway | None = None, **changes: Any
) -> AsyncIterator[tuple[TestGateway, FakeBroker]]:
    """Run a gateway, the proxy before it, and a fake broker that it follows."""
    broker = FakeBroker(directory / "fake.sock", Minter())
    keys = {"broker_socket": str(broker.path), **changes.pop("keys", {})}
    async with (
        broker.running(),
        running_gateway(directory, upstream=upstream, minter=broker.minter, keys=keys, **changes) as gateway,
    ):
        await broker.confirmed()
        yield gateway, broker
