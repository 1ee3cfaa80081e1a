from __future__ import annotations

import os
from pathlib import Path

from gatepass.paths import ADMIN_SOCKET, SYSTEM_SOCKET, admin_socket, default_socket, personal_socket


def test_the_variable_decides_alone(tmp_path: Path) -> None:
    _make_own_broker(tmp_path)
    environ = {"GATEPASS_SOCKET": "/somewhere/else.sock", "XDG_RUNTIME_DIR": str(tmp_path)}
    assert default_socket(environ) == "/somewhere/else.sock"


def test_a_persons_own_broker_comes_before_the_systems(tmp_path: Path) -> None:
    own = _make_own_broker(tmp_path)
    assert default_socket({"XDG_RUNTIME_DIR": str(tmp_path)}) == own


def test_without_an_own_broker_it_is_the_systems(tmp_path: Path) -> None:
    assert default_socket({"XDG_RUNTIME_DIR": str(tmp_path)}) == SYSTEM_SOCKET
    assert default_socket({"GATEPASS_SOCKET": "", "XDG_RUNTIME_DIR": str(tmp_path)}) == SYSTEM_SOCKET


def test_administrators_ask_the_same_broker_but_the_systems_on_a_socket_of_their_own(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert admin_socket(environ) == ADMIN_SOCKET == "/run/gatepass/admin.sock"
    own = _make_own_broker(tmp_path)
    assert admin_socket(environ) == own
    assert admin_socket({**environ, "GATEPASS_SOCKET": "/somewhere/else.sock"}) == "/somewhere/else.sock"


def test_without_a_login_session_the_runtime_directory_is_where_logind_makes_it() -> None:
    assert personal_socket({}) == f"/run/user/{os.getuid()}/gatepass/broker.sock"


def _make_own_broker(runtime: Path) -> str:
    path = runtime / "gatepass" / "broker.sock"
    path.parent.mkdir()
    path.touch()
    return str(path)
