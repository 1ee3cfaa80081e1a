"""Earlier logins: how many are kept, and for how long."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from gatepass.clock import now
from gatepass_gateway import earlier_logins
from gatepass_gateway.earlier_logins import MOST, MOST_PER_UID, EarlierLogins
from gatepass_gateway.trusted_proxy import Client
from support.gateway import Minter, eventually

MINTER = Minter()
CGROUP = 7


def remember(logins: EarlierLogins, number: int, uid: int) -> str:
    token = f"token {number}"
    logins.remember(token, MINTER.claims(uid=uid, reconnect=3_600), CGROUP, now())
    return token


def names(directory: Path) -> list[str]:
    return [entry.name for entry in directory.iterdir()]


def test_a_users_oldest_login_makes_room_and_no_others_does() -> None:
    logins = EarlierLogins()
    remember(logins, 0, uid=1)
    for number in range(1, MOST_PER_UID + 2):
        remember(logins, number, uid=2)
    found = [
        number for number in range(MOST_PER_UID + 2) if logins.find(f"token {number}", Client(2, cgroup=CGROUP), now())
    ]
    assert found == list(range(2, MOST_PER_UID + 2))
    assert logins.find("token 0", Client(1, cgroup=CGROUP), now())


def test_the_one_too_many_makes_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST == 4_096
    monkeypatch.setattr(earlier_logins, "MOST", 10)
    logins = EarlierLogins()
    for uid in range(11):
        remember(logins, uid, uid)
    assert [bool(logins.find(f"token {uid}", Client(uid, cgroup=CGROUP), now())) for uid in range(11)] == [
        False,
        *[True] * 10,
    ]


def test_a_login_that_is_repeated_takes_one_place() -> None:
    logins = EarlierLogins()
    for _ in range(MOST_PER_UID * 2):
        remember(logins, 0, 1)
    remember(logins, 1, 1)
    assert logins.find("token 0", Client(1, cgroup=CGROUP), now())


def test_a_login_ends_on_the_boot_clock_and_with_the_boot() -> None:
    logins, moment = EarlierLogins(), now()
    logins.remember("token", MINTER.claims(uid=1, life=300, reconnect=3_600), CGROUP, moment)
    client = Client(1, cgroup=CGROUP)
    assert logins.find("token", client, moment._replace(boottime=moment.boottime + 3_598, time=0))
    assert not logins.find("token", client, moment._replace(boottime=moment.boottime + 3_600, time=0))
    assert not logins.find("token", client, moment._replace(boot_id="f" * 32))


async def test_the_file_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "logins.json"
    logins = EarlierLogins(path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(logins.run)
        token = remember(logins, 1, 1)
        await eventually(path.exists)
        remember(logins, 2, 1)
        tasks.cancel_scope.cancel()
    again = EarlierLogins(path)
    for known in (token, "token 2"):
        assert again.find(known, Client(1, cgroup=CGROUP), now()) == logins.find(known, Client(1, cgroup=CGROUP), now())
    assert names(tmp_path) == ["logins.json"]


async def test_a_directory_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    logins = EarlierLogins(tmp_path / "none" / "logins.json")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(logins.run)
        remember(logins, 1, 1)
        await anyio.sleep(0.02)
        tasks.cancel_scope.cancel()
    assert logins.find("token 1", Client(1, cgroup=CGROUP), now())
