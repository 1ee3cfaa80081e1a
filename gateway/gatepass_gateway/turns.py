"""What only one can do at a time: of those who wait for it users take turns, however often each of them waits."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import anyio


class Turns:
    """Turns at something that cannot be shared. Who has many waiting waits for them himself."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: OrderedDict[Hashable, deque[anyio.Event]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, user: Hashable) -> AsyncIterator[None]:
        """Wait for a turn of `user`'s, and have it for the time of the block."""
        if self._taken:
            await self._wait(user)
        self._taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, user: Hashable) -> None:
        event = anyio.Event()
        self._waiting.setdefault(user, deque()).append(event)
        try:
            await event.wait()
        except BaseException:
            if event.is_set():
                self._pass_on()
            else:
                self._leave(user, event)
            raise

    def _leave(self, user: Hashable, event: anyio.Event) -> None:
        self._waiting[user].remove(event)
        if not self._waiting[user]:
            del self._waiting[user]

    def _pass_on(self) -> None:
        """Give the turn to the user who has waited longest for one, and let that one wait behind all others again."""
        if not self._waiting:
            self._taken = False
            return
        user, events = self._waiting.popitem(last=False)
        events.popleft().set()
        if events:
            self._waiting[user] = events
