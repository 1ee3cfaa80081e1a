"""The journal's lines: each is one JSON object that carries its number and the SHA-256 of the line before. No I/O.

A line that was removed, moved or changed shows at the next one. A checkpoint is signed too: the signature is over the
line's bytes without the signature itself, which always stands last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from gatepass.tokens import VerifySignature, b64decode, b64encode
from gatepass_broker.events import AnyEvent, Checkpoint, KeyAdded, decode_event, encode_event

_SIGNATURE: Final = b',"signature":"'

Sign = Callable[[bytes], bytes]
LoadKey = Callable[[bytes], VerifySignature]
"""From a raw public key to the check of its signatures. Raises `ValueError` for what is no key."""


class Head(NamedTuple):
    """The place in a chain after which the next line goes."""

    seq: int
    """Number of the last line, 0 where there is none."""
    digest: str
    """SHA-256 of the last line without its newline, base64url; empty where there is none."""


EMPTY: Final = Head(0, "")


class BrokenChainError(ValueError):
    """A line does not follow from the one before. `number` counts lines from 1."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number
        self.why = why


class _Link(msgspec.Struct):
    seq: int
    prev: str


_LINK: Final = msgspec.json.Decoder(_Link)


def encode_line(head: Head, event: AnyEvent, sign: Sign | None = None) -> bytes:
    """Return the line for `event` after `head`, without newline; signed if `sign` is given."""
    body = b'{"seq":%d,"prev":"%s",' % (head.seq + 1, head.digest.encode("ascii")) + encode_event(event)[1:]
    if sign is None:
        return body
    return body[:-1] + _SIGNATURE + b64encode(sign(body)).encode("ascii") + b'"}'


def advance(head: Head, line: bytes) -> Head:
    """Return the head after `line`, which was made for `head`."""
    return Head(head.seq + 1, _digest(line))


def read_lines(
    lines: Iterable[bytes], head: Head | None, known: dict[str, bytes], load_key: LoadKey
) -> Iterator[tuple[AnyEvent, Head]]:
    """Yield each line's event and the head after it. Raise `BrokenChainError` at the first that does not fit.

    `head` None means that what came before is gone (an old segment that was dropped): the first line must then be a
    checkpoint, and its word is taken for its place. `known` has the public keys by kid that the chain has shown so far
    and is added to.
    """
    for number, line in enumerate(lines, start=1):
        try:
            event, head = _read_line(line, head, known, load_key)
        except (ValueError, msgspec.MsgspecError) as error:
            raise BrokenChainError(number, str(error)) from None
        yield event, head


def _read_line(line: bytes, head: Head | None, known: dict[str, bytes], load_key: LoadKey) -> tuple[AnyEvent, Head]:
    link, event = _LINK.decode(line), decode_event(line)
    if head is None:
        head = _anchor(link, event)
    if (link.seq, link.prev) != (head.seq + 1, head.digest):
        raise ValueError("it does not follow from the line before: a line was removed, moved or changed")
    _check_event(line, event, known, load_key)
    return event, advance(head, line)


def _anchor(link: _Link, event: AnyEvent) -> Head:
    if not isinstance(event, Checkpoint):
        raise ValueError("the first line of a segment is not a checkpoint")  # noqa: TRY004 - of the file, not a type
    return Head(link.seq - 1, link.prev)


def _check_event(line: bytes, event: AnyEvent, known: dict[str, bytes], load_key: LoadKey) -> None:
    """A checkpoint must be signed by a key that the chain has shown; the first line there is may show its own."""
    match event:
        case KeyAdded():
            known[event.kid] = public = b64decode(event.x)
            load_key(public)
        case Checkpoint():
            if not known:
                known.update((key.kid, b64decode(key.x)) for key in event.keys)
            _check_signature(line, event, known, load_key)


def _check_signature(line: bytes, event: Checkpoint, known: dict[str, bytes], load_key: LoadKey) -> None:
    signed, mark, signature = line.rpartition(_SIGNATURE)
    public = known.get(event.kid)
    if not mark or public is None or not signature.endswith(b'"}'):
        raise ValueError("the checkpoint is not signed by a key of this journal")
    if not load_key(public)(b64decode(signature[:-2].decode("ascii")), signed + b"}"):
        raise ValueError("the checkpoint's signature does not fit")


def _digest(line: bytes) -> str:
    return b64encode(hashlib.sha256(line).digest())
