"""One connection's side of the protocol, without I/O: bytes in, bytes out, and whether to go on."""

from __future__ import annotations

from collections.abc import Callable

from gatepass.errors import GatepassError, ProtocolError
from gatepass.frames import FrameDecoder, Message, encode_frame
from gatepass.messages import MAX_ID, NO_ID, InvalidRequestError, error_message, ok_message
from gatepass_broker.service import Answer


class Conversation:
    """Takes what a client sends and returns what it gets.

    `answer` serves one request; it may raise any `GatepassError`. Once `closing` is true, what was returned is still to
    be sent, and nothing more is read.
    """

    def __init__(self, answer: Callable[[Message], Answer]) -> None:
        self._answer = answer
        self._decoder = FrameDecoder()
        self._follow_id: int | None = None
        self._awaited: Answer | None = None
        self.closing = False

    @property
    def following(self) -> bool:
        """Whether the client follows what the broker tells."""
        return self._follow_id is not None

    @property
    def awaited(self) -> Answer | None:
        """The answer that is held back until the broker's followers have acted; nothing is answered before it."""
        return self._awaited

    @property
    def is_partial(self) -> bool:
        """Whether the client has sent something that is not answered: part of a frame, or frames that wait."""
        return self._decoder.is_partial

    def feed(self, data: bytes) -> None:
        """Take what arrived."""
        self._decoder.feed(data)

    def replies(self, at_most: int) -> tuple[bytes, int]:
        """Answer up to `at_most` of the requests that arrived; return the replies, and how many there are."""
        out: list[bytes] = []
        while len(out) < at_most and not self.closing and self._awaited is None:
            reply = self._next_reply()
            if reply is None:
                break
            out.append(encode_frame(reply))
        return b"".join(out), len(out)

    def release(self, reply: Message) -> bytes:
        """Return the answer that was held back, now that it is `reply`."""
        self._awaited = None
        return encode_frame(reply)

    def changed(self, told: Message) -> bytes:
        """Return the reply that a follower gets when it is told this; nothing for others."""
        return b"" if self._follow_id is None else encode_frame(ok_message(self._follow_id, told))

    def _next_reply(self) -> Message | None:
        try:
            message = self._decoder.next_message()
        except ProtocolError as error:
            return self._end(NO_ID, error)
        if message is None:
            return None
        request_id = _readable_id(message)
        try:
            answer = self._answer_one(message)
        except ProtocolError as error:
            return self._end(request_id, error)
        except InvalidRequestError as error:
            return error_message(error.request_id, error)
        except GatepassError as error:
            return error_message(request_id, error)
        if answer.follows:
            self._follow_id = request_id
        self._awaited = answer if answer.awaits is not None else None
        return answer.message if self._awaited is None else None

    def _answer_one(self, message: Message) -> Answer:
        if self.following and message.get("op") != "report":
            raise ProtocolError("a connection that follows takes no request but 'report'; open another")
        return self._answer(message)

    def _end(self, request_id: int, error: ProtocolError) -> Message:
        self.closing = True
        return error_message(request_id, error)


def _readable_id(message: Message) -> int:
    value = message.get("id")
    return value if type(value) is int and 0 <= value <= MAX_ID else NO_ID
