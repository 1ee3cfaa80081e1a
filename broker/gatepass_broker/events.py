"""What can happen to a broker, as the journal records it. No I/O.

The journal is the history of these events, and the state is what they add up to. Fields are only ever added, with
a default: an old journal must stay readable.
"""

from __future__ import annotations

from typing import Final

import msgspec

from gatepass.revocations import Cut, Revocation
from gatepass.sessions import LeftBehind


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Something that happened."""

    time: float
    """Seconds since the epoch."""


class Started(Event, frozen=True, tag="started"):
    """The broker began to run."""

    issuer: str
    version: str
    pid: int
    boot_id: str = ""
    """What was revoked in another boot needs no revocation any more: no token outlives its boot."""


class Stopped(Event, frozen=True, tag="stopped"):
    """The broker stopped in an orderly way."""


class Recovered(Event, frozen=True, tag="recovered"):
    """A record was cut off that had been written in part when the last run ended."""

    cut: int
    """Bytes that were removed from the end."""


class Configured(Event, frozen=True, tag="configured"):
    """A configuration came into force."""

    digest: str
    """SHA-256 of the configuration, base64url."""
    rules: int


class KeyAdded(Event, frozen=True, tag="key_added"):
    """A key was published."""

    kid: str
    x: str
    """The raw public key, base64url."""
    signs_until: int


class KeyRetired(Event, frozen=True, tag="key_retired"):
    """A key signs no more; its public half stays until the last token that it signed has ended."""

    kid: str
    published_until: int


class KeyRemoved(Event, frozen=True, tag="key_removed"):
    """A key is no longer published."""

    kid: str


class Issued(Event, frozen=True, tag="issued"):
    """A token was issued."""

    jti: str
    sub: str
    aud: str
    scope: str
    exp: int
    uid: int
    gid: int | None
    pid: int | None
    rule: str
    iat: int = 0
    unit: str | None = None
    binding: str = "uid"
    usable_until: int = 0
    """When nobody can log in with it any more, reconnecting included. Seconds of CLOCK_BOOTTIME."""


class Refused(Event, frozen=True, tag="refused"):
    """A request was refused."""

    op: str
    code: str
    reason: str
    uid: int | None
    pid: int | None


class Throttled(Event, frozen=True, tag="throttled"):
    """A user was refused so often that its further refusals go unrecorded for a while."""

    uid: int | None
    until: int
    rule: str | None = None
    """The rule whose tokens for a minute are used up; None for a user who was refused too often."""


class Revoked(Event, frozen=True, tag="revoked"):
    """Tokens were revoked."""

    by: Cut
    value: str
    issued_until: int
    boottime: int
    """When it was done. Seconds of CLOCK_BOOTTIME."""
    needed_until: int
    """When none of the tokens could be used any more in any case. Seconds of CLOCK_BOOTTIME."""
    uid: int | None
    """Who did it."""


class Locked(Event, frozen=True, tag="locked"):
    """Nothing is issued or accepted from here on."""

    uid: int | None


class Unlocked(Event, frozen=True, tag="unlocked"):
    """The lock ended."""

    uid: int | None


class LeftBehindBy(Event, frozen=True, tag="left_behind"):
    """A session at a gateway made something that outlives it."""

    gateway: str
    record: LeftBehind


class PublishedKey(msgspec.Struct, frozen=True):
    """A public key that verifiers may trust."""

    kid: str
    x: str
    made: float
    signs_until: int
    published_until: int | None = None
    """None while the key signs or will sign. Seconds since the epoch."""


class StandingRevocation(msgspec.Struct, frozen=True):
    """A revocation and for how long it is needed."""

    revocation: Revocation
    needed_until: int
    """Seconds of CLOCK_BOOTTIME."""


class Checkpoint(Event, frozen=True, tag="checkpoint"):
    """The whole state, so that what came before need not be read."""

    kid: str
    """The key that signed this record."""
    keys: tuple[PublishedKey, ...]
    generation: int
    issued: int
    refused: int
    latest_end: int = 0
    boot_id: str = ""
    latest_issue: int = 0
    latest_use: int = 0
    locked: bool = False
    revocations: tuple[StandingRevocation, ...] = ()
    left_behind: tuple[LeftBehind, ...] = ()


AnyEvent = (
    Started
    | Stopped
    | Recovered
    | Configured
    | KeyAdded
    | KeyRetired
    | KeyRemoved
    | Issued
    | Refused
    | Throttled
    | Revoked
    | Locked
    | Unlocked
    | LeftBehindBy
    | Checkpoint
)

_DECODER: Final = msgspec.json.Decoder(AnyEvent)
_ENCODER: Final = msgspec.json.Encoder()


def encode_event(event: Event) -> bytes:
    """Return `event` as a JSON object on one line."""
    return _ENCODER.encode(event)


def decode_event(line: bytes) -> AnyEvent:
    """Return the event in a JSON object, other members ignored. Raise `ValueError` for anything else."""
    try:
        event: AnyEvent = _DECODER.decode(line)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
    return event
