"""The serving path: one request in, one reply out, and what happened in between on the record.

bytes -> FrameDecoder -> parse_request -> decide -> journal -> state -> sign -> reply. The bytes are the connection's
business; from the message on it is `Broker.answer`, the one function to read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gatepass.clock import Moment
from gatepass.errors import GatepassError
from gatepass.frames import Message
from gatepass.messages import error_message, ok_message, parse_request
from gatepass.tokens import VerificationKey, b64encode, encode_token, key_table
from gatepass_broker.decide import Decision, Inquiry, Rules, Standing, decide, key_set
from gatepass_broker.events import AnyEvent, Configured, Recovered, Started, Stopped
from gatepass_broker.journal import Journal
from gatepass_broker.keys import KeyRing, removals, retirements, verification_key
from gatepass_broker.peer import Peer
from gatepass_broker.settings import Lifetimes
from gatepass_broker.state import State
from gatepass_broker.vault import Vault

KeysChanged = Callable[[Message], None]


class Answer(NamedTuple):
    """The reply to one request."""

    message: Message
    follows: bool = False
    """Whether the connection gets the key set again, under this reply's id, whenever it changes."""


class Broker:
    """Answers requests. Owns the state, the keys and the journal; knows nothing of sockets.

    `vault` has the private keys of an earlier run, if anybody has. `clock` returns the present moment. Every method
    that changes something raises `JournalError` if that cannot be recorded, and then has changed nothing.
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
    ) -> None:
        self._rules = rules
        self._lifetimes = lifetimes
        self._journal = journal
        self._version = version
        self._clock = clock
        self._on_keys: list[KeysChanged] = []
        self._state = journal.state
        self._vault = vault or Vault()
        self._keys = _key_ring(self._state, self._vault, clock().time, lifetimes.key)
        self._table: dict[str, VerificationKey] = {}
        self._unverified = 0

    @property
    def state(self) -> State:
        """What has happened so far; to look at."""
        return self._state

    def start(self, digest: str) -> None:
        """Record that the broker runs, under the configuration with this digest, and publish its key."""
        now = self._clock().time
        started: list[AnyEvent] = [Started(time=now, issuer=self._rules.issuer, version=self._version, pid=os.getpid())]
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

    def on_keys(self, told: KeysChanged) -> None:
        """Let `told` be called with the new key set whenever it changes."""
        self._on_keys.append(told)

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
        inquiry = Inquiry(
            operation=request.operation,
            caller=peer.caller,
            exited=peer.has_exited(),
            allowed=allowed,
            moment=self._clock(),
            token_id=b64encode(os.urandom(16)),
        )
        standing = Standing(self._version, connections, self._unverified, self._table)
        decision = decide(self._rules, self._state, standing, inquiry)
        self._record(decision.events)
        return Answer(self._reply(request.id, decision), decision.follows)

    def key_set(self) -> Message:
        """Return the published keys as followers get them."""
        return key_set(self._rules.issuer, self._state)

    def turn_keys(self) -> float:
        """Do what is due with the keys, and return in how many seconds to ask again."""
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
        key = self._keys.current
        self._journal.checkpoint(self._state.checkpoint(self._clock().time, key.kid), key.sign)

    def _record(self, events: Sequence[AnyEvent]) -> None:
        """Let `events` have happened: written first, then applied. What is not recorded did not happen."""
        if events and self._journal.is_due:
            self.checkpoint()
        self._append(events)

    def _append(self, events: Sequence[AnyEvent]) -> None:
        if events:
            self._journal.append(events)
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
        for told in self._on_keys:
            told(self.key_set())


def _key_ring(state: State, vault: Vault, now: float, lifetime: int) -> KeyRing:
    """Return the keys of an earlier run that the vault has, at most the one that signs and the next; else a new key."""
    unretired = [key for key in state.keys.values() if key.published_until is None]
    recalled = [found for key in unretired if (found := vault.recall(key)) is not None]
    current, upcoming, *_ = *(recalled or [vault.make(now, lifetime)]), None
    return KeyRing(current, upcoming, vault.make)
