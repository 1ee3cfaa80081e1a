"""What a daemon tells its service manager while it serves: how it is, and that it still answers."""

from __future__ import annotations

import select
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio
import anyio.to_thread
import structlog

from gatepass.daemon.systemd import Notifier

BEATS: Final = 4
"""In the time that the watchdog allows: two in a row may fail before the service is killed."""
STATUS_SECONDS: Final = 5.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger("service")


class Queue:
    """Connections that wait until a listening socket takes them. Whoever takes one counts it in `taken`."""

    def __init__(self, listening: socket.socket) -> None:
        self.taken = 0
        self._listening = listening
        self._waited_at: int | None = None

    def stands_still(self) -> bool:
        """Whether somebody waits, as at the last call, and nobody was let in since."""
        poll = select.poll()
        poll.register(self._listening, select.POLLIN)
        before, self._waited_at = self._waited_at, self.taken if poll.poll(0) else None
        return before is not None and before == self._waited_at


async def tell(notifier: Notifier, say: Callable[..., None], *what: str) -> None:
    """Have `say`, a method of `notifier`, wait in a thread until the manager takes it: others are served meanwhile."""
    if notifier.is_managed:
        await anyio.to_thread.run_sync(say, *what, abandon_on_cancel=True)


async def keep_manager_informed(
    notifier: Notifier,
    status: Callable[[], str],
    answers: Callable[[float], Awaitable[bool]],
    queues: Sequence[Queue] = (),
) -> None:
    """Tell the manager without end how the daemon is, and that it answers. Return at once where there is no manager.

    `answers` is given seconds, and says whether the daemon has answered a request within them. A request, because a
    timer goes on where the serving does not. A daemon that answers itself, and lets nobody in from one of its `queues`,
    is not called alive either.
    """
    if not notifier.is_managed:
        return
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_keep_status_true, notifier, status)
        if notifier.watchdog_seconds is not None:
            interval = notifier.watchdog_seconds / BEATS
            tasks.start_soon(_pet_while_it_answers, notifier, interval, answers, queues)


async def _keep_status_true(notifier: Notifier, status: Callable[[], str]) -> None:
    while True:
        await anyio.sleep(STATUS_SECONDS)
        if (current := status()) != notifier.told:
            notifier.status(current)


async def _pet_while_it_answers(
    notifier: Notifier, interval: float, answers: Callable[[float], Awaitable[bool]], queues: Sequence[Queue]
) -> None:
    while True:
        next_beat = anyio.current_time() + interval  # what a beat takes is not added to the pause
        answered = await answers(interval)
        stuck = [queue for queue in queues if queue.stands_still()]  # looked at after the loop has turned
        if answered and not stuck:
            await tell(notifier, notifier.alive)
        if stuck:
            _log.error("nobody is let in, and somebody waits", sockets=len(stuck))
        await anyio.sleep_until(next_beat)
