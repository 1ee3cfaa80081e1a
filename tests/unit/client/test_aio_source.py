from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

from gatepass.aio import AsyncTokenSource
from gatepass.errors import ErrorCode, UnreachableError
from gatepass.messages import IssuedToken

TASKS = 50


class SlowIssuer:
    """Answers when it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls = 0
        self.cancelled = 0
        self.error = error
        self.may_answer = anyio.Event()

    async def issue(
        self,
        audience: str | None = None,
        scope: str | None = None,
        ttl: int | None = None,
        binding: str | None = None,
    ) -> IssuedToken:
        self.calls += 1
        number = self.calls
        try:
            await self.may_answer.wait()
        except BaseException:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return IssuedToken(f"token-{number}", 100, "s", "a", "")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def settle() -> None:
    for _ in range(5):
        await checkpoint()


async def test_fifty_tasks_cause_one_request() -> None:
    issuer = SlowIssuer()
    source = AsyncTokenSource(issuer)
    tokens: list[str] = []

    async def get() -> None:
        tokens.append(await source.get())

    async with anyio.create_task_group() as tasks:
        for _ in range(TASKS):
            tasks.start_soon(get)
        await settle()
        issuer.may_answer.set()
    assert tokens == ["token-1"] * TASKS
    assert issuer.calls == 1


async def test_cancelling_the_first_who_asked_costs_the_others_nothing() -> None:
    issuer = SlowIssuer()
    source = AsyncTokenSource(issuer)
    tokens: list[str] = []
    first = anyio.CancelScope()

    async def get_first() -> None:
        with first:
            await source.get()

    async def get() -> None:
        tokens.append(await source.get())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(get_first)
        await settle()
        for _ in range(TASKS):
            tasks.start_soon(get)
        await settle()
        first.cancel()
        await settle()
        issuer.may_answer.set()
    assert tokens == ["token-2"] * TASKS
    assert (issuer.calls, issuer.cancelled) == (2, 1)


async def test_cancelling_one_who_waits_leaves_the_request_alone() -> None:
    issuer = SlowIssuer()
    source = AsyncTokenSource(issuer)
    tokens: list[str] = []

    async def get() -> None:
        tokens.append(await source.get())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(get)
        await settle()
        with anyio.move_on_after(0.01):
            await source.get()
        issuer.may_answer.set()
    assert tokens == ["token-1"]
    assert issuer.calls == 1


async def test_the_error_reaches_every_task_that_waits() -> None:
    issuer = SlowIssuer(UnreachableError(ErrorCode.UNREACHABLE, "gone"))
    source = AsyncTokenSource(issuer)
    errors: list[Exception] = []

    async def get() -> None:
        with pytest.raises(UnreachableError) as caught:
            await source.get()
        errors.append(caught.value)

    async with anyio.create_task_group() as tasks:
        for _ in range(TASKS):
            tasks.start_soon(get)
        await settle()
        issuer.may_answer.set()
    assert errors == [issuer.error] * TASKS
    assert issuer.calls == 1


async def test_the_rules_of_renewal_are_those_of_the_blocking_source() -> None:
    issuer, clock = SlowIssuer(), Clock()
    issuer.may_answer.set()
    source = AsyncTokenSource(issuer, clock=clock)
    assert await source.get() == "token-1"
    clock.now += 79
    assert await source.get() == "token-1"
    clock.now += 2
    assert await source.get() == "token-2"
    clock.now += 90
    issuer.error = UnreachableError(ErrorCode.UNREACHABLE, "gone")
    assert await source.get() == "token-2"
    source.invalidate("token-2")
    with pytest.raises(UnreachableError):
        await source.get()


async def test_a_repr_shows_no_token() -> None:
    issuer = SlowIssuer()
    issuer.may_answer.set()
    source = AsyncTokenSource(issuer)
    assert await source.get() not in repr(source)
