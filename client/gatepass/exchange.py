"""One connection to the broker, without the connection: requests become bytes, bytes become results. No I/O.

The blocking and the async client share this and differ only in how they move bytes.
"""

from __future__ import annotations

from gatepass.errors import ProtocolError
from gatepass.frames import FrameDecoder, Message, encode_frame
from gatepass.messages import MAX_ID, Operation, Request, parse_reply, request_message
from gatepass.patience import CutOffError

READ_SIZE = 65_536
"""Bytes to ask the kernel for at a time: any reply in one go."""


class Exchange:
    """The requests and replies of one connection, one at a time."""

    def __init__(self) -> None:
        self._decoder = FrameDecoder()
        self._id = 0

    def request(self, operation: Operation) -> bytes:
        """Return the bytes to send for `operation`."""
        self._id = self._id % MAX_ID + 1
        return encode_frame(request_message(Request(self._id, operation)))

    def receive(self, data: bytes) -> Message | None:
        """Take what arrived and return the result of the request once its reply is complete.

        `data` is b"" at the end of the stream. Raise the error that an error reply stands for, `ProtocolError` for
        what is no reply, `ConnectionResetError` if the stream ended before a reply, `CutOffError` if in the middle.
        """
        if not data:
            raise CutOffError if self._decoder.is_partial else ConnectionResetError
        self._decoder.feed(data)
        message = self._decoder.next_message()
        if message is None:
            return None
        if self._decoder.is_partial:
            raise ProtocolError("the broker sent more than the reply to what it was asked")
        return parse_reply(message, self._id)
