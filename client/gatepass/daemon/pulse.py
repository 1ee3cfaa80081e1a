"""What a daemon tells its service manager while it serves: how it is, and that it still answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from gatepass.daemon.systemd import Notifier

BEATS: Final = 4
"""In the time that the watchdog allows: two in a row may fail before the service is killed."""
STATUS_SECONDS: Final = 5.0


async def keep_manager_informed(
    notifier: Notifier, status: Callable[[], str], answers: Callable[[float], Awaitable[bool]]
) -> None:
    """Tell the manager without end how the daemon is, and that it answers. Return at once where there is no manager.

    `answers` is given seconds, and says whether the daemon has answered a request within them. A request, because a
    timer goes on where the serving does not.
    """
    if not notifier.is_managed:
        return
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_keep_status_true, notifier, status)
        if notifier.watchdog_seconds is not None:
            tasks.start_soon(_pet_while_it_answers, notifier, notifier.watchdog_seconds / BEATS, answers)


async def _keep_status_true(notifier: Notifier, status: Callable[[], str]) -> None:
    told = status()
    while True:
        await anyio.sleep(STATUS_SECONDS)
        if (current := status()) != told:
            told = current
            notifier.status(told)


async def _pet_while_it_answers(
    notifier: Notifier, interval: float, answers: Callable[[float], Awaitable[bool]]
) -> None:
    while True:
        next_beat = anyio.current_time() + interval  # what a beat takes is not added to the pause
        if await answers(interval):
            notifier.alive()
        await anyio.sleep_until(next_beat)
