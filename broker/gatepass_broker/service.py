"""The serving path: one request in, one reply out, and what happened in between on the record.

bytes -> FrameDecoder -> parse_request -> decide -> journal -> state -> sign -> reply. The bytes are the connection's
business; from the message on it is `Broker.answer`, the one function to read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from gatepass.clock import Moment
from gatepass.daemon.processes import is_alive
from gatepass.errors import GatepassError
from gatepass.frames import Message
from gatepass.messages import (
    ExplainRequest,
    FollowRequest,
    Operation,
    ReportRequest,
    error_message,
    ok_message,
    parse_request,
)
from gatepass.tokens import VerificationKey, b64encode, encode_token, key_table
from gatepass_broker.caller import Caller
from gatepass_broker.decide import decide, follow_message
from gatepass_broker.events import AnyEvent, Configured, LeftBehindBy, Recovered, Started, Stopped, Unlocked
from gatepass_broker.followers import Followers, Progress
from gatepass_broker.inquiry import Decision, Inquiry, Surroundings
from gatepass_broker.journal import Journal, JournalError
from gatepass_broker.judge import Rules
from gatepass_broker.keys import KeyRing, removals, retirements, verification_key
from gatepass_broker.peer import Peer
from gatepass_broker.settings import Lifetimes
from gatepass_broker.state import State
from gatepass_broker.vault import Vault

Told = Callable[[Message], None]
MAX_UNRECORDED: Final = 128
"""Locks and revocations that are in force without being recorded."""

CallerOf = Callable[[int], Caller | None]
"""Returns what the kernel says of the process with a pid; None if there is none."""


class Answer(NamedTuple):
    """The reply to one request."""

    message: Message
    follows: bool = False
    """Whether the connection gets what followers are told, under this reply's id, at each change."""
    awaits: Progress | None = None
    """What the followers have to carry out before `message` can be completed, by `Broker.outcome`, and sent."""


class Broker:
    """Answers requests. Owns the state, the keys and the journal; knows nothing of sockets.

    `vault` has the private keys of an earlier run, if anybody has. `clock` returns the present moment. `caller_of`
    returns who a process is. Every method that changes something raises `JournalError` if that cannot be recorded, and
    then has changed nothing; but a lock and revocations happen at once, and are recorded as soon as they can be.
    """

    def __init__(  # noqa: PLR0913 - the parts that it is made of
        self,
        rules: Rules,
        lifetimes: Lifetimes,
        journal: Journal,
        *,
        version: str,
        clock: Callable[[], Moment],
        vault: Vault | None = None,
        caller_of: CallerOf = lambda _: None,
    ) -> None:
        self._rules = rules
        self._lifetimes = lifetimes
        self._journal = journal
        self._version = version
        self._clock = clock
        self._caller_of = caller_of
        self._followers = Followers()
        self._on_keys: list[Told] = []
        self._on_change: list[Told] = []
        self._on_report: list[Callable[[], None]] = []
        self._state = journal.state
        self._vault = vault or Vault()
        self._keys = _key_ring(self._state, self._vault, clock().time, lifetimes.key)
        self._table: dict[str, VerificationKey] = {}
        self._unverified = 0
        self._unrecorded: list[AnyEvent] = []

    @property
    def is_all_recorded(self) -> bool:
        """Whether no lock or revocation is in force that could not be recorded yet."""
        return not self._unrecorded

    @property
    def state(self) -> State:
        """What has happened so far; to look at."""
        return self._state

    def start(self, digest: str) -> None:
        """Record that the broker runs, under the configuration with this digest, and publish its key."""
        now, _, boot_id = self._clock()
        issuer, version = self._rules.issuer, self._version
        started: list[AnyEvent] = [Started(time=now, issuer=issuer, version=version, pid=os.getpid(), boot_id=boot_id)]
        if self._journal.cut:
            started.insert(0, Recovered(time=now, cut=self._journal.cut))
        held = {key.kid: key for key in self._keys.keys}
        lost = [key for key in self._state.keys.values() if key.kid not in held]
        # No checkpoint before the key that signs it is on the record.
        self._append(
            [
                *started,
                Configured(time=now, digest=digest, rules=len(self._rules.rules)),
                *retirements(lost, now, self._longest_left(now)),
                *(key.added() for kid, key in held.items() if kid not in self._state.keys),
            ]
        )
        self._vault.hold(self._keys.keys)
        self._record(removals(self._state.keys.values(), now))
        self.checkpoint()
        self._publish()

    def _longest_left(self, now: float) -> int:
        """Return for how many seconds a token may live on: longer than now configured, if more was allowed before."""
        return max(self._lifetimes.token, self._state.latest_end - int(now))

    def on_keys(self, told: Told) -> None:
        """Let `told` be called with what followers are told, whenever the published keys change."""
        self._on_keys.append(told)

    def on_change(self, told: Told) -> None:
        """Let `told` be called with what followers are told, at each change."""
        self._on_change.append(told)

    def on_report(self, told: Callable[[], None]) -> None:
        """Let `told` be called when followers have carried something out, or are gone."""
        self._on_report.append(told)

    def stop(self) -> None:
        """Record that the broker stopped."""
        self._record([Stopped(time=self._clock().time)])
        self.checkpoint()

    def configure(self, rules: Rules, lifetimes: Lifetimes, digest: str) -> None:
        """Let another configuration come into force. The issuer stays: it is part of every token that is out."""
        rules = rules._replace(issuer=self._rules.issuer)
        self._record([Configured(time=self._clock().time, digest=digest, rules=len(rules.rules))])
        self._rules, self._lifetimes = rules, lifetimes

    def answer(self, message: Message, peer: Peer, allowed: frozenset[str], connections: int) -> Answer:
        """Return the reply to the request in `message`, sent by `peer` through a socket that allows these operations.

        Raise `ProtocolError` and `InvalidRequestError` as `parse_request` does, and `JournalError`.
        """
        request = parse_request(message)
        operation = request.operation
        inquiry = Inquiry(
            operation=operation,
            caller=peer.caller,
            exited=peer.has_exited(),
            allowed=allowed,
            moment=self._clock(),
            token_id=b64encode(os.urandom(16)),
            subject=self._subject(operation) if "admin" in allowed else None,
        )
        around = Surroundings(
            self._version, connections, self._unverified, self._table, self._followers, is_alive=is_alive
        )
        before = self._state.generation
        decision = decide(self._rules, self._state, around, inquiry)
        if decision.awaits_followers:
            self._cut_off(decision.events)
        else:
            self._record(decision.events)
        reply = self._reply(request.id, decision)
        if isinstance(decision.result, GatepassError):
            return Answer(reply)
        match operation:
            case FollowRequest():
                self._followers.add(peer, operation.name, inquiry.moment.time)
            case ReportRequest():
                self._take_report(peer, operation, inquiry.moment.time)
        # Who has been told of a change can carry it out: they are told before it is looked who has.
        awaits = self._followers.progress(self._state.generation) if decision.awaits_followers else None
        if self._state.generation != before:
            self._tell()
        if decision.awaits_followers:
            reply["recorded"] = self.is_all_recorded
        return Answer(reply, decision.follows, awaits)

    def is_awaited(self, progress: Progress) -> bool:
        """Whether a connected follower has still to carry this out."""
        return self._followers.is_awaited(progress)

    def outcome(self, answer: Answer) -> Message:
        """Return the reply that `answer` began, completed with how far the followers have got."""
        return answer.message if answer.awaits is None else {**answer.message, **self._followers.outcome(answer.awaits)}

    def gone(self, peer: Peer) -> None:
        """Take note that the connection of `peer` has ended."""
        self._followers.remove(peer)
        self._tell_of_reports()

    def _subject(self, operation: Operation) -> Caller | None:
        """Return whom an administrator asks about, if that is not itself."""
        match operation:
            case ExplainRequest(pid=int(pid)):
                return self._caller_of(pid)
            case ExplainRequest(uid=int(uid)):
                groups = frozenset(operation.groups or ())
                return Caller(uid=uid, gid=operation.gid, groups=groups, pid=None, process=None)
        return None

    def _take_report(self, peer: Peer, report: ReportRequest, time: float) -> None:
        follower, left_behind = self._followers.read(peer, report)
        self._record([LeftBehindBy(time=time, gateway=follower.name, record=record) for record in left_behind])
        self._tell_of_reports()

    def _tell_of_reports(self) -> None:
        for told in self._on_report:
            told()

    def follow_message(self) -> Message:
        """Return what followers are told."""
        return follow_message(self._rules.issuer, self._state)

    def turn_keys(self) -> float:
        """Do what is due with the keys, and return in how many seconds to ask again."""
        self._append(())
        now = self._clock().time
        turn = self._keys.turn(self._state.keys, now, self._lifetimes.key, self._longest_left(now))
        if turn.events:
            self._record(turn.events)
            self._keys.take(turn)
            self._vault.hold(self._keys.keys)
            self._publish()
            self.checkpoint()
        return max(0.0, self._keys.next_due(self._state.keys.values()) - now)

    def checkpoint(self) -> None:
        """Write the whole state to the journal, signed and synced."""
        self._append(())
        key = self._keys.current
        self._journal.checkpoint(self._state.checkpoint(self._clock().time, key.kid), key.sign)

    def _record(self, events: Sequence[AnyEvent]) -> None:
        """Let `events` have happened: written first, then applied. What is not recorded did not happen."""
        if not events:
            return
        if self._journal.is_due:
            self.checkpoint()
        self._append(events)

    def _cut_off(self, events: Sequence[AnyEvent]) -> None:
        """Let a lock or revocations happen, in memory at least: on a full disk is when somebody may need them."""
        try:
            self._record(events)
            self._append(())
        except JournalError:
            eases = any(isinstance(event, Unlocked) for event in events)
            if eases or len(self._unrecorded) + len(events) > MAX_UNRECORDED:
                raise
            self._unrecorded += events
            self._apply(events)

    def _append(self, events: Sequence[AnyEvent]) -> None:
        """Record `events` after what is in force unrecorded, all or nothing, and apply them."""
        if events or self._unrecorded:
            self._journal.append([*self._unrecorded, *events])
            self._unrecorded.clear()
        self._apply(events)

    def _apply(self, events: Sequence[AnyEvent]) -> None:
        for event in events:
            self._state.apply(event)

    def _reply(self, request_id: int, decision: Decision) -> Message:
        if isinstance(decision.result, GatepassError):
            if decision.result.code.startswith("token_"):
                self._unverified += 1
            return error_message(request_id, decision.result)
        if decision.claims is None:
            return ok_message(request_id, decision.result)
        key = self._keys.current
        token = encode_token(decision.claims, key.protected, key.sign)
        return ok_message(request_id, {"token": token, **decision.result})

    def _publish(self) -> None:
        self._table = key_table([verification_key(key) for key in self._state.keys.values()])
        self._tell()
        for told in self._on_keys:
            told(self.follow_message())

    def _tell(self) -> None:
        for told in self._on_change:
            told(self.follow_message())


def _key_ring(state: State, vault: Vault, now: float, lifetime: int) -> KeyRing:
    """Return the keys of an earlier run that the vault has, at most the one that signs and the next; else a new key."""
    unretired = [key for key in state.keys.values() if key.published_until is None]
    recalled = [found for key in unretired if (found := vault.recall(key)) is not None]
    current, upcoming, *_ = *(recalled or [vault.make(now, lifetime)]), None
    return KeyRing(current, upcoming, vault.make)
