from __future__ import annotations

import grp
import os
import pwd
import socket
from pathlib import Path

import pytest

from gatepass import unreachable
from gatepass.errors import ErrorCode, UnreachableError
from gatepass.paths import ADMIN_SOCKET, SYSTEM_SOCKET
from gatepass.patience import CutOffError, Patience
from gatepass.unreachable import delay_after

ME = pwd.getpwuid(os.geteuid()).pw_name
MY_GROUP = grp.getgrgid(os.getegid()).gr_name


def said(error: OSError, path: str = "/nowhere/broker.sock", timeout: float = 0.001) -> tuple[ErrorCode, str]:
    with pytest.raises(UnreachableError) as caught:
        delay_after(error, Patience(timeout), path)
    return caught.value.code, caught.value.message


@pytest.fixture
def listening(tmp_path: Path) -> Path:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
    return path


def test_no_socket_says_how_to_start_a_broker() -> None:
    code, message = said(FileNotFoundError())
    assert code is ErrorCode.UNREACHABLE
    assert message == (
        "no broker is running, /nowhere/broker.sock does not exist: start it ('gatepass-broker --loopback-user NAME'), "
        "or set GATEPASS_SOCKET to where yours listens"
    )


def test_no_system_broker_names_its_unit_too() -> None:
    _, message = said(FileNotFoundError(), SYSTEM_SOCKET)
    assert "systemctl status gatepass-broker" in message
    assert "gatepass-broker --loopback-user NAME" in message


@pytest.mark.parametrize(
    ("error", "finding"),
    [
        (ConnectionRefusedError(), "nobody listens on /nowhere/broker.sock"),
        (ConnectionResetError(), "closes the connection without a reply"),
        (CutOffError(), "closes the connection without a reply"),
        (BlockingIOError(), "more connections waiting than it takes"),
        (NotADirectoryError(), "does not exist"),
        (OSError(23, "Too many open files in system"), "cannot be reached (Too many open files in system)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_finding_has_its_words(error: OSError, finding: str) -> None:
    code, message = said(error)
    assert code is ErrorCode.UNREACHABLE
    assert finding in message


def test_a_silent_broker_is_a_timeout() -> None:
    assert said(TimeoutError(), timeout=1.5) == (
        ErrorCode.TIMEOUT,
        "the broker at /nowhere/broker.sock did not answer in 1.5 s: see its log, and try again",
    )


def test_no_permission_names_the_group_to_join(listening: Path) -> None:
    listening.chmod(0o660)
    if ME in grp.getgrnam(MY_GROUP).gr_mem:
        pytest.skip("this user is listed in their own primary group")
    assert said(PermissionError(), str(listening)) == (
        ErrorCode.PERMISSION,
        f"only the group '{MY_GROUP}' may use {listening}: 'sudo usermod -aG {MY_GROUP} {ME}', then log in again",
    )


def test_no_permission_of_a_directory_names_its_group(listening: Path) -> None:
    listening.parent.chmod(0o750)
    assert f"usermod -aG {MY_GROUP} {ME}" in said(PermissionError(), f"{listening.parent}/hidden")[1]


def test_who_has_joined_the_group_since_logging_in_is_told_that(
    listening: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening.chmod(0o660)
    listed = grp.struct_group((MY_GROUP, "x", os.getegid(), [ME]))
    monkeypatch.setattr(grp, "getgrnam", lambda name: listed)
    assert "log in again" in said(PermissionError(), str(listening))[1]
    assert "usermod" not in said(PermissionError(), str(listening))[1]


def test_a_socket_for_one_user_names_them(listening: Path) -> None:
    listening.chmod(0o600)
    assert f"which is for user {ME} alone" in said(PermissionError(), str(listening))[1]


@pytest.mark.parametrize("mode", [0o600, 0o000], ids=oct)
def test_the_administrators_socket_takes_root(listening: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    listening.chmod(mode)
    monkeypatch.setattr(unreachable, "ADMIN_SOCKET", str(listening))
    assert said(PermissionError(), str(listening)) == (
        ErrorCode.PERMISSION,
        f"user {ME} may not use {listening}, where root administers the broker: run this as root (sudo)",
    )


def test_an_administrators_socket_that_a_group_may_use_names_it(
    listening: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening.chmod(0o660)
    monkeypatch.setattr(unreachable, "ADMIN_SOCKET", str(listening))
    assert (
        "sudo usermod" in said(PermissionError(), str(listening))[1]
        or "log in again" in said(PermissionError(), str(listening))[1]
    )


def test_a_hidden_administrators_socket_takes_root_too(listening: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = f"{listening.parent}/hidden"
    listening.parent.chmod(0o750)
    monkeypatch.setattr(unreachable, "ADMIN_SOCKET", hidden)
    assert said(PermissionError(), hidden)[1].endswith("run this as root (sudo)")


def test_a_broker_without_an_administrators_socket_is_told_from_one_that_is_not_there(
    listening: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "systemctl start gatepass-broker" in said(FileNotFoundError(), ADMIN_SOCKET)[1]
    monkeypatch.setattr(unreachable, "SYSTEM_SOCKET", str(listening))
    code, message = said(FileNotFoundError(), ADMIN_SOCKET)
    assert code is ErrorCode.UNREACHABLE
    assert message.startswith(f"the broker has no socket for administrators, {ADMIN_SOCKET} does not exist: ")


@pytest.mark.root
def test_accounts_without_a_name_are_shown_by_number(listening: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file to another user")
    os.chown(listening, 54_321, 54_322)
    listening.chmod(0o660)
    assert "'sudo usermod -aG 54322" in said(PermissionError(), str(listening))[1]
