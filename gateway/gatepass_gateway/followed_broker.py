"""Following the broker over its socket: its keys and what is cut off; and the other way, what is open and left behind.

What the broker says is in force first, then what it cuts off is ended, and only then is the broker told so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import anyio
import structlog
from anyio.abc import SocketAttribute, SocketStream

from gatepass.clock import Moment, now
from gatepass.daemon.logs import SeldomWarning
from gatepass.errors import ErrorCode, GatepassError, ProtocolError, TryLaterError
from gatepass.frames import MAX_FRAME, FrameDecoder, Message, encode_frame
from gatepass.messages import (
    MAX_ID,
    NO_ID,
    FollowRequest,
    ReportRequest,
    Request,
    field,
    parse_reply,
    request_message,
)
from gatepass.revocations import standing_from_wire
from gatepass.server_identity import check_path, check_server
from gatepass.sessions import record_to_wire
from gatepass_gateway.concurrency import run_beside
from gatepass_gateway.reports import Batch
from gatepass_gateway.sessions import Sessions
from gatepass_gateway.verifier import Trust, key_set

_log: structlog.stdlib.BoundLogger = structlog.get_logger("keys")

DEFAULT_ABSENCE_SECONDS: Final = 3_600

_FIRST_RETRY_SECONDS: Final = 0.1
_LONGEST_RETRY_SECONDS: Final = 2.0
_REFRESH_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 5.0
_TRY_AGAIN_SECONDS: Final = 2
_FOLLOW_ID: Final = 1


class FollowedBroker:
    """Follows the broker. When it is gone, what it said last stays in force for `absence_seconds` of the boot clock.

    `sessions` are ended as it says, and reported to it. `name` is what it calls this follower in lists for people.
    """

    def __init__(
        self,
        path: str,
        sessions: Sessions | None = None,
        *,
        name: str | None = None,
        absence_seconds: float = DEFAULT_ABSENCE_SECONDS,
        clock: Callable[[], Moment] = now,
    ) -> None:
        self._path = path
        self._sessions = sessions or Sessions(clock)
        self._name = name
        self._absence_seconds = absence_seconds
        self._clock = clock
        self._current = Trust()
        self._heard = False
        self._gone_since: float | None = None
        self._retry_seconds = _FIRST_RETRY_SECONDS
        self._changed = anyio.Event()
        self._poke = anyio.Event()
        self._gone = SeldomWarning("keys_not_followed")

    @property
    def current(self) -> Trust:
        """What counts as last heard of; nothing before the first word."""
        return self._current

    @property
    def complaint(self) -> str | None:
        """How long the broker has been away, and what comes of it; None while it is there, or has never been."""
        if self._gone_since is None:
            return None
        away = self._clock().boottime - self._gone_since
        left = self._absence_seconds - away
        then = f"what it said last counts for another {left:.0f} s" if left > 0 else "nobody logs in until it is back"
        return f"the broker has been away for {away:.0f} s: {then}"

    def check(self) -> None:
        """Raise `TryLaterError` (UNAVAILABLE) if nothing was heard ever, or for too long: the lock may be on."""
        if not self._heard:
            raise TryLaterError(
                ErrorCode.UNAVAILABLE,
                "the gateway's proxy has not heard of the broker yet, as its log says: start the broker",
                retry_after=_TRY_AGAIN_SECONDS,
            )
        if self._gone_since is None:
            return
        away = self._clock().boottime - self._gone_since
        if away > self._absence_seconds or not self._absence_seconds:
            raise TryLaterError(
                ErrorCode.UNAVAILABLE,
                f"the gateway's proxy lost the broker {away:.0f} s ago, and keys.broker_absence_seconds are over: "
                "start the broker; the proxy's log says why it cannot be reached",
                retry_after=_TRY_AGAIN_SECONDS,
            )

    async def run(self) -> None:
        """Follow, and connect again whenever the broker was gone."""
        while True:
            try:
                await self._follow()
            except (GatepassError, OSError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
                if self._heard and self._gone_since is None:
                    self._gone_since = self._clock().boottime
                # The type stands in for errors without text, such as the end of the stream.
                self._gone.warn(socket=self._path, reason=str(error) or type(error).__name__)
            self._poke = anyio.Event()
            with anyio.move_on_after(self._retry_seconds):
                await self._poke.wait()
            self._retry_seconds = min(self._retry_seconds * 2, _LONGEST_RETRY_SECONDS)

    async def refreshed(self) -> bool:
        """Connect at once instead of at the next attempt, and wait a moment for what the broker says.

        A connected broker has said everything: it publishes a key before it signs with it.
        """
        if self._heard and self._gone_since is None:
            return False
        changed = self._changed
        self._poke.set()
        with anyio.move_on_after(_REFRESH_SECONDS):
            await changed.wait()
        return changed.is_set()

    async def _follow(self) -> None:
        owner = check_path(self._path)
        async with await anyio.connect_unix(self._path) as stream:
            check_server(stream.extra(SocketAttribute.raw_socket), self._path, owner)
            conversation = _Conversation(stream)
            await conversation.send(Request(_FOLLOW_ID, FollowRequest(self._name)))
            with anyio.fail_after(_ANSWER_SECONDS):
                first = await conversation.next_message()
            self._sessions.tell_anew()
            conversation.seq = await self._act_on(first)
            await run_beside(partial(self._listen, conversation), partial(self._report, conversation))

    async def _act_on(self, message: Message) -> int:
        """Let what the broker says be in force, end what it cuts off, and return its number."""
        result = parse_reply(message, _FOLLOW_ID)
        seq, standing = field(result, "seq", int), standing_from_wire(result)
        try:
            keys = key_set(field(result, "issuer", str), field(result, "keys", list))
        except (ValueError, AttributeError, TypeError) as error:
            raise ProtocolError(f"the broker's keys cannot be used: {error}") from None
        self._current = Trust(keys, standing)
        self._heard, self._gone_since = True, None
        self._changed.set()
        self._changed = anyio.Event()
        _log.info(
            "keys",
            issuer=keys.issuer,
            keys=[key.kid for key in keys.table.values()],
            locked=standing.locked,
            revocations=len(standing.revocations),
        )
        await self._sessions.enforce(standing)
        return seq

    async def _listen(self, conversation: _Conversation) -> None:
        while True:
            message = await conversation.next_message()
            if message.get("id") in (_FOLLOW_ID, NO_ID):
                conversation.seq = await self._act_on(message)
                self._sessions.wake()
            else:
                conversation.answered(message)

    async def _report(self, conversation: _Conversation) -> None:
        """Report, one thing after the other: while the broker is busy, what happens is gathered."""
        reports = self._sessions.reports
        while True:
            await self._sessions.until(lambda: conversation.seq != conversation.confirmed)
            batch = reports.take(anyio.current_time())
            # Whoever waits for this number counts what has ended: all of it is told first.
            seq = conversation.confirmed or 0 if reports.has_closed else conversation.seq
            try:
                await conversation.report(batch, seq)
            except TryLaterError:
                raise  # it is still to be told
            except GatepassError:
                reports.confirm(batch)  # what the broker refuses once it would refuse for ever
                raise
            reports.confirm(batch)
            self._retry_seconds = _FIRST_RETRY_SECONDS


class _Conversation:
    """One connection to the broker."""

    def __init__(self, stream: SocketStream) -> None:
        self.seq = 0
        """Of the last message that was acted on."""
        self.confirmed: int | None = None
        """The number that the broker was told last."""
        self._stream = stream
        self._socket = stream.extra(SocketAttribute.raw_socket)
        self._decoder = FrameDecoder()
        self._last_id = _FOLLOW_ID
        self._reply: Message | None = None
        self._replied = anyio.Event()

    async def send(self, request: Request) -> None:
        await self._stream.send(encode_frame(request_message(request)))

    async def next_message(self) -> Message:
        while (message := self._decoder.next_message()) is None:
            # The stream's own `receive` lets the loop report an error where it is cancelled as something arrives.
            await anyio.wait_readable(self._socket)
            data = self._socket.recv(MAX_FRAME)
            if not data:
                raise anyio.EndOfStream
            self._decoder.feed(data)
        return message

    async def report(self, batch: Batch, seq: int) -> None:
        """Send a report, with the number of what was acted on, and wait for the answer. Raise `GatepassError`."""
        self._last_id = self._last_id % MAX_ID + 1
        if self._last_id <= _FOLLOW_ID:
            self._last_id = _FOLLOW_ID + 1
        self._reply, self._replied = None, anyio.Event()
        report = ReportRequest(
            seq,
            tuple(map(record_to_wire, batch.opened)),
            batch.closed,
            tuple(map(record_to_wire, batch.left_behind)),
        )
        await self.send(Request(self._last_id, report))
        with anyio.fail_after(_ANSWER_SECONDS):
            await self._replied.wait()
        assert self._reply is not None  # noqa: S101 - `answered` has set it
        parse_reply(self._reply, self._last_id)
        self.confirmed = seq

    def answered(self, message: Message) -> None:
        self._reply = message
        self._replied.set()
