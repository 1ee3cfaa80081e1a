"""The broker as a service: sockets that are handed over, keys that are kept, and what the manager is told."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from gatepass.daemon.pulse import keep_manager_informed
from gatepass.daemon.systemd import Notifier
from gatepass_broker.pulse import answers
from support.broker import BrokerProcess, RawClient, ask, broker_tables, in_thread, own_rule, running_broker
from support.manager import WITH_OWN_PID, TestManager, in_memory


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[TestManager]:
    with TestManager(tmp_path) as manager:
        yield manager


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    broker = BrokerProcess(tmp_path, prefix=WITH_OWN_PID)
    yield broker
    broker.__exit__(None, None, None)


def kids(broker: BrokerProcess) -> list[str]:
    """The published keys, the one that signs last."""
    with RawClient(broker.socket) as client:
        return [key["kid"] for key in client.ask(op="follow")["keys"]]


def issued_before_a_crash(manager: TestManager, broker: BrokerProcess) -> tuple[str, list[str]]:
    """Run the broker, end it at once, and return a token of it and the keys that it published."""
    broker.start(**manager.service())
    token, published = ask(broker.socket, op="issue")["token"], kids(broker)
    broker.kill()
    manager.drain()
    return token, published


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_client_that_connects_while_no_broker_runs_is_answered_by_the_next(
    tmp_path: Path, manager: TestManager, loop: str
) -> None:
    broker = BrokerProcess(tmp_path, prefix=WITH_OWN_PID, options=["--loop", loop])
    manager.listen_unix(broker.socket, 0o600)
    try:
        for _ in range(2):  # the socket is the manager's: it stays for the next run
            with RawClient(broker.socket) as early:
                broker.start(**manager.service())
                assert early.ask(op="issue")["ok"]
                assert ask(broker.socket, op="issue")["ok"]
                assert broker.stop() == 0
    finally:
        broker.__exit__(None, None, None)


def test_a_socket_that_nobody_configured_is_not_served(
    tmp_path: Path, manager: TestManager, broker: BrokerProcess
) -> None:
    manager.listen_unix(tmp_path / "other.sock", 0o600)
    refused = start_and_fail(broker, manager)
    assert refused.returncode == 6
    assert "no [[socket]] has that path" in refused.stderr


def test_a_socket_with_other_permissions_than_configured_is_not_served(
    manager: TestManager, broker: BrokerProcess
) -> None:
    manager.listen_unix(broker.socket, 0o666)
    refused = start_and_fail(broker, manager)
    assert refused.returncode == 6
    assert "SocketMode=" in refused.stderr


def test_a_fault_is_told_at_once_and_ends_the_service_after_a_while(
    manager: TestManager, broker: BrokerProcess
) -> None:
    """Whoever waits in the socket has it started again, as often as it ends."""
    manager.listen_unix(broker.socket, 0o600)
    broker.config.write_text("[broker\n")
    started = time.monotonic()
    refused = start_and_fail(broker, manager)
    assert refused.returncode == 6
    assert time.monotonic() - started > 3
    assert "this is not TOML" in manager.listen("STATUS=misconfigured", prefix=True)["STATUS"]


def test_what_is_handed_to_another_process_is_left_alone(
    tmp_path: Path, manager: TestManager, broker: BrokerProcess
) -> None:
    """LISTEN_PID names somebody else: the broker makes its own socket."""
    manager.listen_unix(tmp_path / "other.sock", 0o600)
    broker.prefix = []
    broker.start(**manager.service(LISTEN_PID="1"))
    assert ask(broker.socket, op="issue")["ok"]


def test_the_manager_is_told_of_start_reload_and_stop(manager: TestManager, broker: BrokerProcess) -> None:
    broker.start(**manager.service())
    assert "rules: 1; tokens issued: 0" in manager.listen("READY=1")["STATUS"]

    broker.config.write_text("[broker\n")
    broker.signal(signal.SIGHUP)
    assert int(manager.listen("RELOADING=1")["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1_000
    assert "the configuration was not reloaded" in manager.listen("READY=1")["STATUS"]

    broker.write_config(broker_tables(broker.directory, rules=[own_rule(), own_rule(name="more")]))
    broker.signal(signal.SIGHUP)
    manager.listen("RELOADING=1")
    assert manager.listen("READY=1")["STATUS"].startswith("rules: 2;")

    broker.stop()
    manager.listen("STOPPING=1")


def test_a_broker_that_stands_still_is_not_called_alive(manager: TestManager, broker: BrokerProcess) -> None:
    broker.start(**manager.service(watchdog_seconds=0.3))
    for _ in range(3):
        manager.listen("WATCHDOG=1", seconds=5)
    broker.signal(signal.SIGSTOP)
    time.sleep(0.2)
    manager.drain()
    manager.told.clear()
    with pytest.raises(AssertionError, match="nobody said"):
        manager.listen("WATCHDOG=1", seconds=0.5)
    broker.signal(signal.SIGCONT)
    manager.listen("WATCHDOG=1", seconds=5)


class TakesNobody:
    """What a broker has in the place of an acceptor when that is broken."""

    def __init__(self, listening: socket.socket, _: object) -> None:
        listening.listen()

    def close(self) -> None:
        """Do nothing."""


async def test_a_broker_that_lets_nobody_in_is_not_called_alive_though_it_answers_itself(
    tmp_path: Path, manager: TestManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatepass_broker.server.pidfds_come_with_connections", lambda: False)
    monkeypatch.setattr("gatepass_broker.server.Acceptor", TakesNobody)
    notifier = Notifier(str(tmp_path / "notify.sock"), 0.2)
    async with running_broker(tmp_path) as broker, anyio.create_task_group() as tasks:
        server = broker.server
        tasks.start_soon(keep_manager_informed, notifier, str, partial(answers, server.house), server.queues)
        await in_thread(lambda: manager.listen("WATCHDOG=1"))  # nobody waits yet
        with RawClient(broker.socket):
            await anyio.sleep(0.2)
            manager.drain()
            manager.told.clear()
            await anyio.sleep(0.3)
            manager.drain()
            assert manager.told == []
        tasks.cancel_scope.cancel()


def test_the_beats_leave_no_trace(manager: TestManager, broker: BrokerProcess) -> None:
    """They are no requests of a client: not in the journal, and their connections do not add up."""
    broker.start(**manager.service(watchdog_seconds=0.15))
    for _ in range(10):
        manager.listen("WATCHDOG=1", seconds=5)
    status = ask(broker.socket, op="status")
    journal = "".join(path.read_text() for path in (broker.directory / "state" / "journal").glob("*.jsonl"))
    assert status["connections"] <= 2
    assert '"refused"' not in journal.replace('"refused":0', "")
    assert len(journal.splitlines()) == 4  # started, configured, key_added, checkpoint


def test_keys_survive_a_crash_in_memory_that_the_manager_keeps(manager: TestManager, broker: BrokerProcess) -> None:
    token, before = issued_before_a_crash(manager, broker)
    assert list(manager.kept) == [f"key-{before[0]}"]
    assert all(map(in_memory, manager.kept.values()))
    (kept,) = manager.kept.values()
    with pytest.raises(PermissionError):
        os.pwrite(kept, b"x", 0)  # sealed: nobody changes it

    broker.start(**manager.service())
    assert kids(broker) == before
    assert ask(broker.socket, op="verify", token=token, audience="openclaw")["ok"]
    broker.stop()
    assert b"PRIVATE" not in everything_under(broker.directory)


def test_a_key_that_was_not_kept_is_replaced_and_its_tokens_still_verify(
    manager: TestManager, broker: BrokerProcess
) -> None:
    token, before = issued_before_a_crash(manager, broker)
    stale = manager.kept.pop(f"key-{before[0]}")
    manager.kept[f"key-{'A' * 43}"] = stale  # one that the journal does not know is no key

    broker.start(**manager.service())
    after = kids(broker)
    assert after[0] == before[0]
    assert len(after) == 2
    assert ask(broker.socket, op="verify", token=token, audience="openclaw")["ok"]
    manager.listen("FDSTOREREMOVE=1")
    assert list(manager.kept) == [f"key-{after[1]}"]


def test_whatever_else_the_manager_has_kept_is_given_back_and_keeps_nobody_out(
    manager: TestManager, broker: BrokerProcess
) -> None:
    """What another release has kept, or nobody knows, comes again at each start: it must not end them all."""
    token, before = issued_before_a_crash(manager, broker)
    os.close(manager.kept.pop(f"key-{before[0]}"))
    manager.kept[f"key-{before[0]}"], other_end = os.pipe()
    os.close(other_end)
    manager.kept["of-another-release"] = os.memfd_create("other")

    broker.start(**manager.service())
    after = kids(broker)
    assert (len(after), after[0]) == (2, before[0])
    assert ask(broker.socket, op="verify", token=token, audience="openclaw")["ok"]
    manager.drain()
    assert list(manager.kept) == [f"key-{after[1]}"]


def test_a_broker_that_cannot_write_takes_its_time_to_end(manager: TestManager, broker: BrokerProcess) -> None:
    """It is started again without end: not five times in a second."""
    manager.listen_unix(broker.socket, 0o600)
    started = time.monotonic()
    full = ["prlimit", "--fsize=0"]
    command = [*full, *WITH_OWN_PID, sys.executable, "-m", "gatepass_broker", "--config", str(broker.config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, **manager.service())
    assert ended.returncode == 1
    assert time.monotonic() - started > 3
    assert "journal cannot be written" in manager.listen("STATUS=cannot start", prefix=True)["STATUS"]


def test_the_private_key_is_on_no_disk(manager: TestManager, broker: BrokerProcess) -> None:
    broker.start(**manager.service())
    kids(broker)
    manager.drain()
    (secret,) = (os.pread(descriptor, 64, 0) for descriptor in manager.kept.values())
    assert len(secret) == 32
    broker.stop()
    assert secret not in everything_under(broker.directory)


def test_a_seed_makes_the_same_keys_again_without_the_manager_keeping_any(
    tmp_path: Path, manager: TestManager, broker: BrokerProcess
) -> None:
    credentials = make_credential(tmp_path, os.urandom(32))
    broker.start(**manager.service(CREDENTIALS_DIRECTORY=str(credentials)))
    before = kids(broker)
    broker.kill()
    broker.start(**manager.service(CREDENTIALS_DIRECTORY=str(credentials)))
    assert kids(broker) == before
    broker.kill()
    manager.drain()
    assert manager.kept == {}

    make_credential(tmp_path, os.urandom(32))
    broker.start(**manager.service(CREDENTIALS_DIRECTORY=str(credentials)))
    assert kids(broker)[0] == before[0]  # still published, for the tokens that it signed
    assert len(kids(broker)) == 2


def test_a_seed_that_is_too_short_is_refused(tmp_path: Path, manager: TestManager, broker: BrokerProcess) -> None:
    credentials = make_credential(tmp_path, b"short")
    refused = start_and_fail(broker, manager, CREDENTIALS_DIRECTORY=str(credentials))
    assert refused.returncode == 6
    assert "systemd-creds encrypt" in refused.stderr


@pytest.mark.parametrize("address", ["/does/not/exist", "vsock:2:1", "", "@gatepass-nobody"])
def test_a_manager_that_does_not_listen_ends_nothing(broker: BrokerProcess, address: str) -> None:
    broker.start(env={**os.environ, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"})
    time.sleep(0.2)
    assert ask(broker.socket, op="issue")["ok"]


def test_the_abstract_address_of_a_manager_is_reached(broker: BrokerProcess) -> None:
    name = f"@gatepass-test-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(f"\0{name[1:]}")
        notify.settimeout(10)
        broker.start(env={**os.environ, "NOTIFY_SOCKET": name})
        messages = [notify.recv(4096) for _ in range(2)]
    assert any(message.startswith(b"READY=1") for message in messages)


def make_credential(directory: Path, seed: bytes) -> Path:
    credentials = directory / "credentials"
    credentials.mkdir(exist_ok=True)
    (credentials / "signing-seed").write_bytes(seed)
    return credentials


def start_and_fail(broker: BrokerProcess, manager: TestManager, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [*WITH_OWN_PID, sys.executable, "-m", "gatepass_broker", "--config", str(broker.config)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=20, check=False, **manager.service(None, **variables)
    )


def everything_under(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
