"""Turns: one at a time, users after each other, and nothing is lost when somebody gives up."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from gatepass_gateway.turns import Turns


async def one(turns: Turns, user: str, had: list[str]) -> None:
    async with turns.turn(user):
        await anyio.lowlevel.checkpoint()
        had.append(user)


async def test_who_has_many_waiting_waits_for_them_himself() -> None:
    turns, had = Turns(), list[str]()
    async with anyio.create_task_group() as tasks:
        for user in ("one", "one", "one", "two", "one", "three", "two"):
            tasks.start_soon(one, turns, user, had)
    assert had == ["one", "one", "two", "three", "one", "two", "one"]


async def test_only_one_has_a_turn_at_a_time() -> None:
    turns, inside = Turns(), 0

    async def count(user: int) -> None:
        nonlocal inside
        async with turns.turn(user % 3):
            inside += 1
            await anyio.sleep(0.001)
            assert inside == 1
            inside -= 1

    async with anyio.create_task_group() as tasks:
        for user in range(30):
            tasks.start_soon(count, user)


@pytest.mark.parametrize("later", [False, True], ids=["while it waits", "when it has just got its turn"])
async def test_who_gives_up_keeps_nobody_waiting(later: bool) -> None:
    turns, had = Turns(), list[str]()
    scope = anyio.CancelScope()

    async def give_up() -> None:
        with scope:
            await one(turns, "one", had)

    async with anyio.create_task_group() as tasks:
        async with turns.turn("none"):
            tasks.start_soon(give_up)
            tasks.start_soon(one, turns, "two", had)
            await anyio.wait_all_tasks_blocked()
            if not later:
                scope.cancel()
                await anyio.wait_all_tasks_blocked()
        scope.cancel()
    assert had == ["two"]
    with anyio.fail_after(1):
        await one(turns, "one", had)
