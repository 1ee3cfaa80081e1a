"""One connection: an asyncio protocol that attests its caller before anything else, and keeps it to its limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, cast

import structlog

from gatepass.daemon.logs import SeldomWarning
from gatepass.errors import ErrorCode, GatepassError, TryLaterError
from gatepass.frames import Message, encode_frame
from gatepass.messages import NO_ID, error_message
from gatepass_broker.conversation import Conversation
from gatepass_broker.peer import Peer, SocketOptions, attest
from gatepass_broker.places import Places
from gatepass_broker.registry import Registry
from gatepass_broker.service import Answer, Broker
from gatepass_broker.settings import ConnectionLimits

_log: Final = structlog.stdlib.get_logger()
# What anybody can cause at will is not logged each time.
_UNATTESTED: Final = SeldomWarning("connection refused: the kernel does not say who is calling")
_TOO_MANY: Final = SeldomWarning("connection refused: too many are open")
_OVERDUE: Final = SeldomWarning("connection closed: a deadline passed")


FOLLOWERS_SECONDS: Final = 2.0
"""How long the answer to a revocation or lock waits for followers to act. They are told at once, whatever it says."""


class House:
    """What all connections share. `limits` may be replaced while they are open."""

    def __init__(self, broker: Broker, limits: ConnectionLimits, places: Places) -> None:
        self.broker = broker
        self.limits = limits
        self.registry: Registry[Connection] = Registry(limits.connections, limits.connections_per_uid)
        self.places = places
        broker.on_change(self._changed)
        broker.on_report(self._reported)

    def at_once(self, uid: int | None) -> int:
        """Return how many requests of one connection are answered before others have their turn.

        What `limits` allow is shared by all connections of its user: many must not make the others wait longer.
        """
        return max(1, self.limits.pipelined // max(1, self.registry.held_by(uid)))

    def _changed(self, told: Message) -> None:
        """Tell every follower."""
        for connection in self.registry.everyone():
            connection.changed(told)

    def _reported(self) -> None:
        """Let those go on who wait for followers to act."""
        for connection in self.registry.everyone():
            connection.followers_acted()


class Connection(asyncio.Protocol):
    """A client's connection on a socket that allows the operation groups in `allowed`. `absent_at`: as for `attest`."""

    _transport: asyncio.Transport
    _peer: Peer | None = None

    def __init__(self, house: House, allowed: frozenset[str], absent_at: int | None = None) -> None:
        self._house = house
        self._allowed = allowed
        self._absent_at = absent_at
        self._loop = asyncio.get_running_loop()
        self._conversation = Conversation(self._answer)
        self._deadline = Deadline(self._loop, self._overdue)
        self._writing_paused = False
        self._reading_paused = False
        self._more_scheduled = False
        self._ended = False
        self._impatience: asyncio.TimerHandle | None = None
        self.active_at = 0.0

    @property
    def uid(self) -> int | None:
        """Whose connection it is."""
        return None if self._peer is None else self._peer.caller.uid

    @property
    def following(self) -> bool:
        """Whether it follows what the broker tells."""
        return self._conversation.following

    @property
    def busy(self) -> bool:
        """Whether a request or a reply is on its way."""
        return self._writing_paused or self._conversation.is_partial or self._conversation.awaited is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Find out who is calling. Nothing is read from a caller whom the kernel does not name."""
        self._transport = cast(asyncio.Transport, transport)
        self.active_at = self._loop.time()
        try:
            connection = cast(SocketOptions, transport.get_extra_info("socket"))
            self._peer = attest(connection, self._house.places, self._absent_at)
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
        if self._impatience is not None:
            self._impatience.cancel()
        self._house.registry.remove(self)
        if self._peer is not None:
            if self.following:
                self._house.broker.gone(self._peer)
            self._peer.close()

    def changed(self, told: Message) -> None:
        """Tell the client, if it follows."""
        if frame := self._conversation.changed(told):
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
        awaiting = self._conversation.awaited is not None
        if self._writing_paused or self._more_scheduled or awaiting or self._transport.is_closing():
            return
        at_once = self._house.at_once(self.uid)
        replies, count = self._conversation.replies(at_once)
        if replies:
            self._transport.write(replies)
        if self._conversation.closing:
            self._close()
            return
        if self._conversation.awaited is not None:
            self._await_followers()
            return
        if count == at_once:
            self._more_scheduled = True
            self._loop.call_soon(self._serve_more)
        elif self._ended and not self._writing_paused:
            self._close()
            return
        self._watch(answered=count > 0)

    def followers_acted(self, *, wait: bool = True) -> None:
        """Send the answer that was held back if the broker's followers have acted; without `wait`, in any case."""
        broker, answer = self._house.broker, self._conversation.awaited
        if answer is None or answer.awaits is None or (wait and broker.is_awaited(answer.awaits)):
            return
        if self._impatience is not None:
            self._impatience.cancel()
        self._transport.write(self._conversation.release(broker.outcome(answer)))
        # Later, and not within whatever brought the news: another connection's report, or this one's own request.
        self._more_scheduled = True
        self._loop.call_soon(self._serve_more)

    def _await_followers(self) -> None:
        self._deadline.clear()
        self._pause_reading(True)
        self._impatience = self._loop.call_later(FOLLOWERS_SECONDS, partial(self.followers_acted, wait=False))
        self.followers_acted()

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
