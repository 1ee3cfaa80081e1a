"""What a service says to its manager gets there, though any user may fill the socket to which it is said."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from gatepass.daemon import systemd
from gatepass.daemon.pulse import keep_manager_informed, tell
from gatepass.daemon.systemd import Notifier

NOISE = b"X=1"
SAYINGS = {
    "READY=1": lambda notifier: notifier.ready("well"),
    "WATCHDOG=1": Notifier.alive,
    "FDSTOREREMOVE=1": lambda notifier: notifier.forget("key"),
}


class FullManager:
    """The socket of a service manager, full of what another user has sent there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(0.5)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as flooding:
            flooding.setblocking(False)
            while self._takes_more(flooding):
                pass

    def _takes_more(self, flooding: socket.socket) -> bool:
        try:
            flooding.sendto(NOISE, str(self.path))
        except BlockingIOError:
            return False
        return True

    def heard(self) -> list[str]:
        """Return the first lines of all that comes until nothing more does."""
        found = []
        try:
            while True:
                found.append(self.socket.recv(4096))
        except TimeoutError:
            return [message.decode().splitlines()[0] for message in found if message != NOISE]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[FullManager]:
    manager = FullManager(tmp_path / "notify")
    with manager.socket:
        yield manager


@pytest.mark.parametrize("wanted", SAYINGS)
def test_what_the_manager_counts_on_waits_for_room(manager: FullManager, wanted: str) -> None:
    saying = threading.Thread(target=SAYINGS[wanted], args=(Notifier(str(manager.path)),))
    saying.start()
    time.sleep(0.1)
    assert manager.heard() == [wanted]
    saying.join()


def test_it_does_not_wait_for_ever(manager: FullManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "PATIENCE_SECONDS", 1)
    begun = time.monotonic()
    Notifier(str(manager.path)).alive()
    assert 0.9 < time.monotonic() - begun < 4
    assert manager.heard() == []


async def test_others_are_served_meanwhile(manager: FullManager) -> None:
    async def answers(_: float) -> bool:
        return True

    notifier = Notifier(str(manager.path), watchdog_seconds=60)  # one beat in this time
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tell, notifier, notifier.ready, "well")
        tasks.start_soon(keep_manager_informed, notifier, lambda: "well", answers)
        begun = time.monotonic()
        await anyio.sleep(0.2)
        assert time.monotonic() - begun < 2
        assert sorted(await anyio.to_thread.run_sync(manager.heard)) == ["READY=1", "WATCHDOG=1"]
        tasks.cancel_scope.cancel()
