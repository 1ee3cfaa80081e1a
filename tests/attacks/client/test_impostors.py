"""Attacks 4, 5, 9, 11 and 16: somebody else's socket on the path, or on the way to it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatepass.client import Client
from gatepass.connection import connect
from gatepass.errors import ConfigurationError, ErrorCode, UnreachableError
from gatepass.server_identity import check_path, check_server
from support.client import Peer, always, both_clients, call, scripted

STRANGER, OTHER = 54_321, 54_322
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files to other users")


@pytest.fixture
def socket_path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "run" / "s"
    path.parent.mkdir(mode=0o755)
    with scripted(path, always(lambda talk: talk.answer())):
        yield path


def refused(path: object) -> str:
    with pytest.raises(UnreachableError) as caught:
        check_path(str(path))
    assert caught.value.code is ErrorCode.IMPOSTOR
    return caught.value.message


@both_clients
async def test_an_own_socket_is_accepted(kind: str, socket_path: Path) -> None:
    assert (await call(kind, socket_path, "issue")).token == "scripted.to.ken"


@both_clients
@pytest.mark.parametrize("path", ["@gatepass", "\0gatepass"], ids=["at", "zero"])
async def test_5_abstract_sockets_are_refused(kind: str, path: str) -> None:
    with pytest.raises(UnreachableError, match="abstract") as caught:
        await call(kind, path, "issue")
    assert caught.value.code is ErrorCode.IMPOSTOR


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o770, 0o757], ids=oct)
def test_4_a_directory_that_others_can_change(socket_path: Path, mode: int) -> None:
    socket_path.parent.chmod(mode)
    assert "can be changed by others" in refused(socket_path)


def test_4_a_directory_further_up_that_others_can_change(socket_path: Path) -> None:
    socket_path.parent.parent.chmod(0o777)
    assert str(socket_path.parent.parent) in refused(socket_path)
    socket_path.parent.parent.chmod(0o700)


@pytest.mark.root
@needs_root
def test_11_a_strangers_socket_in_a_shared_directory(tmp_path: Path) -> None:
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    with scripted(shared / "s", always(lambda talk: talk.answer())):
        check_path(str(shared / "s"))
        os.chown(shared / "s", STRANGER, STRANGER)
        assert f"user {STRANGER}" in refused(shared / "s")


@pytest.mark.root
@needs_root
def test_11_a_strangers_directory_in_a_shared_one(socket_path: Path) -> None:
    socket_path.parent.parent.chmod(0o1777)
    os.chown(socket_path.parent, STRANGER, STRANGER)
    assert str(socket_path.parent) in refused(socket_path)


@pytest.mark.root
@needs_root
def test_an_account_that_root_gave_a_directory_to_is_trusted_with_it(socket_path: Path) -> None:
    os.chown(socket_path.parent, STRANGER, STRANGER)
    os.chown(socket_path, STRANGER, STRANGER)
    assert check_path(str(socket_path)) == STRANGER


@pytest.mark.root
@needs_root
def test_11_another_owner_inside_that_directory_is_that_accounts_choice(socket_path: Path) -> None:
    os.chown(socket_path.parent, STRANGER, STRANGER)
    os.chown(socket_path, OTHER, OTHER)
    assert check_path(str(socket_path)) == OTHER
    socket_path.parent.chmod(0o1777)
    assert f"user {OTHER}" in refused(socket_path)


@pytest.mark.root
@needs_root
def test_16_what_a_user_namespace_does_not_map_is_nobody(socket_path: Path) -> None:
    os.chown(socket_path, 65_534, 65_534)
    assert "user 65534" in refused(socket_path)


@pytest.mark.root
@needs_root
def test_11_a_link_that_a_stranger_planted(tmp_path: Path, socket_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(socket_path.parent)
    assert check_path(str(link / "s")) == 0
    tmp_path.chmod(0o1777)
    os.lchown(link, STRANGER, STRANGER)
    assert str(link) in refused(link / "s")


def test_links_are_followed_as_the_kernel_does(tmp_path: Path, socket_path: Path) -> None:
    (tmp_path / "relative").symlink_to("run/../run")
    (tmp_path / "absolute").symlink_to(tmp_path / "relative")
    assert check_path(f"{tmp_path}/./absolute//s") == os.geteuid()


def test_a_link_to_a_directory_that_others_can_change(tmp_path: Path, socket_path: Path) -> None:
    (tmp_path / "link").symlink_to(socket_path.parent)
    socket_path.parent.chmod(0o777)
    assert str(socket_path.parent) in refused(tmp_path / "link" / "s")


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "too many symbolic links" in refused(tmp_path / "a")


def test_what_is_no_socket_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").touch()
    assert "is not a socket" in refused(tmp_path / "s")


@pytest.mark.parametrize("path", ["relative.sock", "", "/with\0zero"], ids=repr)
def test_a_path_that_is_none_is_a_configuration_error(path: str) -> None:
    with pytest.raises(ConfigurationError, match="absolute path"):
        check_path(path)


def test_9_a_path_that_is_too_long_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="107 bytes"):
        Client(f"{tmp_path}/{'x' * 108}").status()


def test_the_server_is_who_owns_the_socket(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(socket_path))
        check_server(connection, str(socket_path), os.geteuid())


_LISTEN_AS_STRANGER = f"""
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.setuid({STRANGER})
listener.listen()
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.root
@needs_root
def test_11_another_user_listens_on_a_socket_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "s"
    command = [sys.executable, "-c", _LISTEN_AS_STRANGER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(UnreachableError, match=f"user {STRANGER} answers") as caught:
            connect(str(path))
        process.communicate()
    assert caught.value.code is ErrorCode.IMPOSTOR


async def test_an_impostor_is_told_at_once_and_asked_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run" / "s"
    path.parent.mkdir()
    path.parent.chmod(0o777)
    peer = Peer(path, [always(lambda talk: talk.answer())])
    try:
        with pytest.raises(UnreachableError):
            await call("blocking", path, "issue")
    finally:
        peer.close()
    assert peer.connections == 0
