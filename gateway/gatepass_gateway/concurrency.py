"""Two things at once, with plain errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

_Result = TypeVar("_Result")


async def run_beside(main: Callable[[], Awaitable[_Result]], beside: Callable[[], Awaitable[object]]) -> _Result:
    """Return what `main` returns, with `beside` running along until then.

    `beside` may end earlier; if it fails, `main` is cancelled. The first error of either is raised as it is, where a
    task group alone would wrap it.
    """
    errors: list[Exception] = []
    results: list[_Result] = []
    async with anyio.create_task_group() as tasks:

        async def watched() -> None:
            try:
                await beside()
            except Exception as error:  # noqa: BLE001 - raised again below
                errors.append(error)
                tasks.cancel_scope.cancel()

        tasks.start_soon(watched)
        try:
            results.append(await main())
        except Exception as error:  # noqa: BLE001 - raised again below
            errors.append(error)
        tasks.cancel_scope.cancel()
    if errors:
        raise errors[0]
    return results[0]
