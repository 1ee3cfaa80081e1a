"""What the broker decides on, and what comes of it, as values. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from gatepass.claims import Claims, Process
from gatepass.clock import Moment
from gatepass.errors import GatepassError
from gatepass.frames import Message
from gatepass.messages import Operation
from gatepass.tokens import VerificationKey
from gatepass_broker.caller import Caller
from gatepass_broker.events import AnyEvent
from gatepass_broker.followers import Followers


class Inquiry(NamedTuple):
    """One request with everything that is known about it."""

    operation: Operation
    caller: Caller
    exited: bool
    """Whether the caller's process has ended since it connected."""
    allowed: frozenset[str]
    """Operation groups of the socket that the request came in by."""
    moment: Moment
    token_id: str
    """128 random bits, base64url: the `jti` if a token is issued."""
    subject: Caller | None = None
    """Whom an `explain` is about, if that is another process; None if there is none with that pid."""


class Surroundings(NamedTuple):
    """What the broker knows about itself beyond its state."""

    version: str
    connections: int
    unverified: int
    """Tokens that `verify` refused: counted, not recorded, since anybody may show anything."""
    keys: Mapping[str, VerificationKey]
    """Published keys, from `gatepass.tokens.key_table`."""
    followers: Followers
    is_alive: Callable[[Process], bool]


class Decision(NamedTuple):
    """What is to be recorded and answered."""

    result: Message | GatepassError
    events: tuple[AnyEvent, ...] = ()
    claims: Claims | None = None
    """What the token says that completes the result."""
    follows: bool = False
    """Whether this connection gets the result again whenever it changes."""
    awaits_followers: bool = False
    """Whether the answer has to wait until the followers have carried the events out, and then says so."""
