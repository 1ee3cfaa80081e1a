"""Frames on the broker's socket: a 4-byte big-endian length, then one msgpack map of at most 64 KiB.

No I/O: bytes go in, maps come out. A map holds strings, integers, booleans, nil, arrays and maps, nothing else:
no floats (NaN compares unequal to itself), no binary, no extension types. Everything else ends the connection.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

import msgpack

from gatepass.errors import ProtocolError

MAX_FRAME: Final = 65_536
"""Longest body in bytes. The largest honest message, a key set in rotation, is under 4 KiB."""

MAX_DEPTH: Final = 8
"""Deepest nesting of arrays and maps, the outer map included. The deepest honest message has 4 levels."""

_HEADER_BYTES: Final = 4

Message = dict[str, Any]


def encode_frame(message: Message) -> bytes:
    """Return `message` as one frame.

    Raise `ProtocolError` if no frame can hold it: it is too long or too deep, or has an integer beyond 64 bits, or text
    that is not Unicode (lone surrogates, as from an argv that is not UTF-8).
    """
    try:
        body: bytes = msgpack.packb(message, use_bin_type=True)
    except (ValueError, OverflowError) as error:
        raise ProtocolError(f"a value in the message fits into no frame ({type(error).__name__})") from None
    if len(body) > MAX_FRAME:
        raise ProtocolError(f"the message has {len(body)} bytes, more than the {MAX_FRAME} that a frame may have")
    return len(body).to_bytes(_HEADER_BYTES, "big") + body


def decode_body(body: bytes) -> Message:
    """Return the one map that `body` holds. Raise `ProtocolError` for anything else."""
    try:
        message = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_map_without_duplicates,
            ext_hook=_refuse_ext,
            max_array_len=4_096,
            max_map_len=4_096,
        )
    except ProtocolError:
        raise
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        # The library's text can quote the input, which may be a token: the type alone is told.
        raise ProtocolError(f"the frame is not one msgpack value ({type(error).__name__})") from None
    if not isinstance(message, dict):
        raise ProtocolError(f"the frame holds {type(message).__name__}, not a map")
    _check_values(message, depth=1)
    return message


class FrameDecoder:
    """Cuts a byte stream into messages.

    Feed it what arrived, then call `next_message` until it returns None. A length beyond `MAX_FRAME` is refused
    when its four bytes are there, before anything of the body is kept.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def is_partial(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take what arrived from the peer."""
        self._buffer += data

    def next_message(self) -> Message | None:
        """Return the next complete message, or None until more is fed. Raise `ProtocolError`."""
        buffer = self._buffer
        if len(buffer) < _HEADER_BYTES:
            return None
        length = int.from_bytes(buffer[:_HEADER_BYTES], "big")
        if length > MAX_FRAME:
            raise ProtocolError(f"a frame of {length} bytes was announced, more than the {MAX_FRAME} allowed")
        end = _HEADER_BYTES + length
        if len(buffer) < end:
            return None
        body = bytes(buffer[_HEADER_BYTES:end])
        del buffer[:end]
        return decode_body(body)


def _map_without_duplicates(pairs: list[tuple[Any, Any]]) -> Message:
    message = dict(pairs)
    if len(message) != len(pairs):
        raise ProtocolError("a map in the frame has the same key twice")
    return message


def _refuse_ext(code: int, data: bytes) -> NoReturn:
    del data
    raise ProtocolError(f"the frame holds an extension type ({code}), which the protocol does not have")


def _check_values(value: Any, depth: int) -> None:  # noqa: ANN401 - this is what finds out the type
    if value is None or isinstance(value, str | int):
        return
    if depth > MAX_DEPTH:
        raise ProtocolError(f"the frame is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ProtocolError("a map in the frame has a key that is not a string")
            _check_values(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_values(item, depth + 1)
    else:
        raise ProtocolError(f"the frame holds a {type(value).__name__}, which the protocol does not have")
