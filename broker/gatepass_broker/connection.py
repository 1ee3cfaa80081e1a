"""One connection: an asyncio protocol that attests its caller before anything else, and keeps it to its limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

import structlog

from gatepass.daemon.logs import SeldomWarning
from gatepass.errors import ErrorCode, GatepassError, TryLaterError
from gatepass.frames import Message, encode_frame
from gatepass.messages import NO_ID, error_message
from gatepass_broker.conversation import Conversation
from gatepass_broker.peer import Peer, SocketOptions, attest
from gatepass_broker.registry import Registry
from gatepass_broker.service import Answer, Broker
from gatepass_broker.settings import ConnectionLimits

_log: Final = structlog.stdlib.get_logger()
# What anybody can cause at will is not logged each time.
_UNATTESTED: Final = SeldomWarning("connection refused: the kernel does not say who is calling")
_TOO_MANY: Final = SeldomWarning("connection refused: too many are open")
_OVERDUE: Final = SeldomWarning("connection closed: a deadline passed")


class House:
    """What all connections share. `limits` may be replaced while they are open."""

    def __init__(self, broker: Broker, limits: ConnectionLimits) -> None:
        self.broker = broker
        self.limits = limits
        self.registry: Registry[Connection] = Registry(limits.connections, limits.connections_per_uid)

    def keys_changed(self, keys: Message) -> None:
        """Tell every follower."""
        for connection in self.registry.everyone():
            connection.keys_changed(keys)


class Connection(asyncio.Protocol):
    """A client's connection on a socket that allows the operation groups in `allowed`."""

    _transport: asyncio.Transport
    _peer: Peer | None = None

    def __init__(self, house: House, allowed: frozenset[str]) -> None:
        self._house = house
        self._allowed = allowed
        self._loop = asyncio.get_running_loop()
        self._conversation = Conversation(self._answer)
        self._deadline = Deadline(self._loop, self._overdue)
        self._writing_paused = False
        self._reading_paused = False
        self._more_scheduled = False
        self._ended = False
        self.active_at = 0.0

    @property
    def uid(self) -> int | None:
        """Whose connection it is."""
        return None if self._peer is None else self._peer.caller.uid

    @property
    def following(self) -> bool:
        """Whether it follows the keys."""
        return self._conversation.following

    @property
    def busy(self) -> bool:
        """Whether a request or a reply is on its way."""
        return self._writing_paused or self._conversation.is_partial

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Find out who is calling. Nothing is read from a caller whom the kernel does not name."""
        self._transport = cast(asyncio.Transport, transport)
        self.active_at = self._loop.time()
        try:
            self._peer = attest(cast(SocketOptions, transport.get_extra_info("socket")))
        except OSError as error:
            _UNATTESTED.warn(error=error.strerror)
            self._transport.abort()
            return
        self._enter()

    def _enter(self) -> None:
        """Take a place among the open connections, or say that there is none."""
        admitted, evicted = self._house.registry.admit(self)
        if evicted is not None:
            evicted.abort()  # not `end`: what it does not read must not keep its descriptors
        if admitted:
            self._deadline.set("request", self._house.limits.idle_seconds)
            return
        _TOO_MANY.warn(uid=self.uid, open=len(self._house.registry))
        self._transport.write(encode_frame(error_message(NO_ID, _FULL)))
        self._close()

    def data_received(self, data: bytes) -> None:
        """Answer what arrived."""
        self.active_at = self._loop.time()
        self._conversation.feed(data)
        self._serve()

    def eof_received(self) -> bool:
        """The client sends nothing more: answer what it sent, then close."""
        self._ended = True
        self._serve()
        return True

    def pause_writing(self) -> None:
        """The client does not read: answer nothing more until it does, and wait for it no longer than for a frame."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """The client reads again."""
        self._writing_paused = False
        self._serve()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything."""
        del exc
        self._deadline.clear()
        self._house.registry.remove(self)
        if self._peer is not None:
            self._peer.close()

    def keys_changed(self, keys: Message) -> None:
        """Tell the client, if it follows the keys."""
        if frame := self._conversation.keys_changed(keys):
            self._transport.write(frame)
            self._watch(answered=True)

    def end(self) -> None:
        """Close in good order; what was answered is still sent."""
        self._close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def _serve(self) -> None:
        """Answer requests that are complete: a bounded number, so that other connections have their turn."""
        if self._writing_paused or self._more_scheduled or self._transport.is_closing():
            return
        replies, count = self._conversation.replies(self._house.limits.pipelined)
        if replies:
            self._transport.write(replies)
        if self._conversation.closing:
            self._close()
            return
        if count == self._house.limits.pipelined:
            self._more_scheduled = True
            self._loop.call_soon(self._serve_more)
        elif self._ended and not self._writing_paused:
            self._close()
            return
        self._watch(answered=count > 0)

    def _serve_more(self) -> None:
        self._more_scheduled = False
        self._serve()

    def _answer(self, message: Message) -> Answer:
        assert self._peer is not None  # noqa: S101 - nothing is read before attestation
        try:
            return self._house.broker.answer(message, self._peer, self._allowed, len(self._house.registry))
        except GatepassError:
            raise
        except Exception:  # noqa: BLE001 - one client's request must not end the others' broker
            _log.exception("a request met a fault in the broker", uid=self.uid)
            raise TryLaterError(ErrorCode.INTERNAL, "the broker failed on this request; its log says why") from None

    def _watch(self, *, answered: bool) -> None:
        """Set what the client must do next, and by when; read from it only when its turn has come."""
        limits = self._house.limits
        self._pause_reading(self._writing_paused or self._more_scheduled)
        if self._writing_paused:
            self._deadline.set("read", limits.frame_seconds)
        elif self._conversation.is_partial:
            # Counted from the first byte: a byte now and then wins no time.
            self._deadline.set("frame", limits.frame_seconds, renew=answered)
        elif self.following:
            self._deadline.clear()
        else:
            self._deadline.set("request", limits.idle_seconds, renew=answered)

    def _pause_reading(self, pause: bool) -> None:
        if pause != self._reading_paused:
            self._reading_paused = pause
            (self._transport.pause_reading if pause else self._transport.resume_reading)()

    def _close(self) -> None:
        """Send what was written, then close; a client that does not read it is cut off."""
        self._deadline.set("read", self._house.limits.frame_seconds)
        self._transport.close()

    def _overdue(self, awaited: str) -> None:
        _OVERDUE.warn(uid=self.uid, waited_for=awaited)
        self._transport.abort()


class Deadline:
    """One timer, moved only when it has to ring earlier: most requests never touch it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, overdue: Callable[[str], None]) -> None:
        self._loop = loop
        self._overdue = overdue
        self._awaited = ""
        self._at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def set(self, awaited: str, seconds: float, *, renew: bool = False) -> None:
        """Expect `awaited` within `seconds` from now, or as set before if it is expected already and not `renew`ed."""
        if awaited == self._awaited and not renew:
            return
        self._awaited, self._at = awaited, self._loop.time() + seconds
        if self._timer is not None and self._timer.when() > self._at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(self._at, self._ring)

    def clear(self) -> None:
        """Expect nothing."""
        self._awaited = ""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        if self._loop.time() >= self._at:
            self._overdue(self._awaited)
        else:
            self._timer = self._loop.call_at(self._at, self._ring)


_FULL: Final = TryLaterError(
    ErrorCode.UNAVAILABLE,
    "the broker has as many connections as it takes, none of them idle; close some, or ask again",
    retry_after=1,
)
