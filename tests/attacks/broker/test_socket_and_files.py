"""Attacks 1 to 12 (docs/threat-model.md): the socket, its directory, and the files around it."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gatepass.errors import ConfigurationError
from gatepass_broker import listener as listener_module
from gatepass_broker.config import load
from gatepass_broker.jwks import write_jwks
from gatepass_broker.listener import Listener, open_listener
from gatepass_broker.settings import SocketSettings
from support.broker import broker_tables, to_toml

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files to other users")


def entry(path: Path, **changes: Any) -> SocketSettings:
    return SocketSettings(path, 0o660, None, None, frozenset({"request"}))._replace(**changes)


@contextmanager
def opened(settings: SocketSettings) -> Iterator[Listener]:
    listener = open_listener(settings)
    try:
        yield listener
    finally:
        listener.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "broker.sock"


def refused(settings: SocketSettings, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        open_listener(settings)


def test_01_nobody_can_connect_before_the_permissions_are_right(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool]] = []
    apply = listener_module._apply

    def look(path: Path, settings: SocketSettings) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            seen.append((stat.S_IMODE(path.lstat().st_mode), client.connect_ex(str(path)) == 0))
        apply(path, settings)

    monkeypatch.setattr(listener_module, "_apply", look)
    with opened(entry(path)):
        assert seen == [(0, False)]
        assert stat.S_IMODE(path.lstat().st_mode) == 0o660


def test_02_a_live_socket_is_not_stolen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        refused(entry(path), "another process listens")
        assert path.exists()


def test_02_a_live_socket_with_a_full_queue_is_not_stolen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "_PROBE_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as first:
        other.bind(str(path))
        other.listen(0)
        first.connect(str(path))
        refused(entry(path), "another process listens")


def test_02_a_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with opened(entry(path)) as listener:
        listener.socket.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_02_two_brokers_that_start_at_once(path: Path) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(2)

    def start() -> None:
        barrier.wait()
        try:
            opened_listeners.append(open_listener(entry(path)))
            outcomes.append("listens")
        except ConfigurationError:
            outcomes.append("refused")

    opened_listeners: list[Listener] = []
    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["listens", "refused"]
    opened_listeners[0].close()


def test_02_a_socket_that_somebody_replaced_is_not_removed_at_stop(path: Path) -> None:
    listener = open_listener(entry(path))
    path.rename(path.with_name("ours"))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        listener.close()
        assert path.exists()


def plant(kind: str, path: Path, target: Path) -> None:
    match kind:
        case "symlink":
            path.symlink_to(target)
        case "file":
            path.touch()
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()


@pytest.mark.parametrize("kind", ["symlink", "file", "fifo", "directory"])
def test_03_something_else_in_the_way_is_left_alone(path: Path, kind: str) -> None:
    plant(kind, path, Path("elsewhere"))
    before = path.lstat()
    refused(entry(path), "not a socket")

    assert path.lstat() == before


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
def test_04_a_directory_that_others_can_write_to(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(mode)

    refused(entry(directory / "broker.sock"), "chmod go-w")
    assert list(directory.iterdir()) == []


def test_04_a_directory_above_that_others_can_write_to(tmp_path: Path) -> None:
    (tmp_path / "open" / "closed").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)

    refused(entry(tmp_path / "open" / "closed" / "broker.sock"), "chmod go-w")


@needs_root
@pytest.mark.root
def test_04_a_directory_of_another_user(tmp_path: Path) -> None:
    directory = tmp_path / "theirs"
    directory.mkdir(mode=0o700)
    os.chown(directory, 12345, 12345)

    refused(entry(directory / "broker.sock"), "belongs to uid 12345")


@pytest.mark.parametrize("name", ["@gatepass", "\0gatepass"])
def test_05_abstract_sockets_are_refused(name: str) -> None:
    refused(entry(Path(name)), "abstract sockets have no permissions")


class TestConfigurationFile:
    @pytest.fixture
    def config(self, tmp_path: Path) -> Path:
        path = tmp_path / "broker.toml"
        path.write_text(to_toml(broker_tables(tmp_path)))
        path.chmod(0o600)
        load(path)
        return path

    @pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
    def test_07_writable_by_others(self, config: Path, mode: int) -> None:
        config.chmod(mode)
        with pytest.raises(ConfigurationError, match=f"chmod go-w {config}"):
            load(config)

    def test_07_a_symlink(self, config: Path) -> None:
        link = config.with_name("link.toml")
        link.symlink_to(config)
        with pytest.raises(ConfigurationError, match="symbolic link"):
            load(link)

    @pytest.mark.timeout(5)
    def test_07_a_fifo_does_not_hang(self, config: Path) -> None:
        fifo = config.with_name("fifo.toml")
        os.mkfifo(fifo, 0o600)
        with pytest.raises(ConfigurationError, match="not a regular file"):
            load(fifo)

    def test_07_in_a_directory_that_others_can_write_to(self, config: Path) -> None:
        config.parent.chmod(0o777)
        with pytest.raises(ConfigurationError, match="chmod go-w"):
            load(config)

    @needs_root
    @pytest.mark.root
    def test_07_of_another_user(self, config: Path) -> None:
        os.chown(config, 12345, -1)
        with pytest.raises(ConfigurationError, match="belongs to uid 12345"):
            load(config)


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_08_the_umask_at_start_changes_nothing(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with opened(entry(path, mode=0o640)):
            assert stat.S_IMODE(path.lstat().st_mode) == 0o640
            assert stat.S_IMODE(path.with_name("broker.sock.lock").stat().st_mode) & 0o077 == 0
        assert os.umask(umask) == umask
        write_jwks(path.with_name("jwks.json"), [])
        assert stat.S_IMODE(path.with_name("jwks.json").stat().st_mode) == 0o644
    finally:
        os.umask(before)


def test_09_a_path_too_long_is_explained(tmp_path: Path) -> None:
    refused(entry(tmp_path / ("x" * 108)), "a socket's path may have 107")


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
def test_10_a_planted_lock_file(path: Path, kind: str) -> None:
    lock, victim = path.with_name("broker.sock.lock"), path.with_name("victim")
    victim.write_text("precious")
    plant(kind, lock, victim)

    refused(entry(path), "lock file .* remove it")
    assert victim.read_text() == "precious"


def test_10_a_lock_file_of_a_dead_broker_stops_nobody(path: Path) -> None:
    path.with_name("broker.sock.lock").write_text("4711\n")

    with opened(entry(path)):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may give away files")
def test_12_a_group_that_cannot_be_applied_unprivileged(path: Path) -> None:
    refused(entry(path, group=0), "cannot be given")


def test_12_a_group_that_cannot_be_applied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    refused(entry(path, group=4711), "group 4711, mode 0660 cannot be given to the socket: Operation not permitted")
    assert not path.exists()


def test_12_a_file_system_that_forgets_modes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "chmod", lambda self, mode: None)

    refused(entry(path), "did not keep them")
    assert not path.exists()


@needs_root
@pytest.mark.root
def test_12_owner_and_group_are_applied(path: Path) -> None:
    with opened(entry(path, owner=12345, group=23456)):
        status = path.lstat()

        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 23456, 0o660)
