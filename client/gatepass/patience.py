"""How long a request goes on being tried, and how far apart the attempts are. No I/O: the caller sleeps.

A broker that restarts is gone for a moment: its socket is missing, refuses, or closes. Callers should not notice. So
what a restart looks like is tried again until the deadline; everything else is told at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from gatepass.errors import ErrorCode, TryLaterError

FIRST_DELAY: Final = 0.02
"""Seconds before the second attempt: a broker that lost an idle connection answers on a new one at once."""

LONGEST_DELAY: Final = 0.5

_RESTARTING: Final = (
    FileNotFoundError,  # the socket is not there yet
    ConnectionRefusedError,  # nobody listens on it any more
    ConnectionResetError,
    BrokenPipeError,
    BlockingIOError,  # its queue of connections is full (EAGAIN, unix(7))
)

_BRIEF: Final = (ErrorCode.UNAVAILABLE, ErrorCode.CONNECT_AGAIN)


class CutOffError(ConnectionError):
    """The connection ended in the middle of a reply."""


class Patience:
    """The attempts of one request, which together must end `timeout` seconds from now."""

    def __init__(self, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.timeout = timeout
        self._clock = clock
        self._deadline = clock() + timeout
        self._delay = FIRST_DELAY
        self._cut_off = False
        self._last: Exception | None = None

    def remaining(self) -> float:
        """Return the seconds that are left. Raise `TimeoutError` if none are."""
        left = self._deadline - self._clock()
        if left <= 0:
            raise TimeoutError
        return left

    def for_attempt(self) -> float:
        """Return the seconds that are left for one more attempt. If none are, raise what ended the last one.

        The wait for it can take longer than it should, on a busy machine; that is not the broker's silence.
        """
        try:
            return self.remaining()
        except TimeoutError:
            raise self._last or TimeoutError from None

    def delay_after(self, error: Exception) -> float:
        """Return the seconds to wait before trying again after `error`, or raise it if that makes no sense.

        A restart is waited for until the deadline. A reply that was cut off is asked for once more and no further:
        the request may be what ended the broker. A broker that names a time is asked again then, not earlier. One that
        wants another connection made is asked again on that, which the caller sees to.
        """
        delay, self._last = self._wanted_delay(error), error
        if delay is None or self._clock() + delay >= self._deadline:
            raise error
        return delay

    def _wanted_delay(self, error: Exception) -> float | None:
        if isinstance(error, _RESTARTING):
            return self._next_delay()
        if isinstance(error, CutOffError) and not self._cut_off:
            self._cut_off = True
            return self._next_delay()
        if isinstance(error, TryLaterError) and error.code in _BRIEF:
            return max(self._next_delay(), error.retry_after or 0)
        return None

    def _next_delay(self) -> float:
        """Double the delay, and take between half and all of it, so that clients do not return as one wave."""
        delay, self._delay = self._delay, min(self._delay * 2, LONGEST_DELAY)
        return delay * (0.5 + os.urandom(1)[0] / 512)  # the module `random` takes longer to load than this waits
