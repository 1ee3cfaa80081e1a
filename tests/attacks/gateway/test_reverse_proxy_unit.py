"""Attempts to bring the identity header from outside of the reverse proxy's unit, with real cgroups."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.abc
import pytest

from gatepass_gateway import sock_diag
from support.gateway import TestGateway, acting_as, bearer, read_all, running_gateway
from support.hierarchy import Hierarchy, enter
from support.upstream import USER, USER_HEADER, running_upstream

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make cgroups and act as another user"),
]

WWW_DATA = 33
ALICE = "alice@example.com"
FROM_PROXY = f"GET /echo HTTP/1.0\r\n{USER_HEADER}: {ALICE}\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n"


@asynccontextmanager
async def gateway_for(hierarchy: Hierarchy, directory: Path) -> AsyncIterator[TestGateway]:
    proxies = [{"user": WWW_DATA, "unit": hierarchy.unit}]
    async with (
        running_upstream(allow_users=(ALICE, USER)) as behind,
        running_gateway(directory, upstream=behind, reverse_proxy=proxies) as gateway,
    ):
        yield gateway


def socket_in(hierarchy: Hierarchy, cgroup: Path, uid: int = WWW_DATA) -> socket.socket:
    with hierarchy.inside(cgroup), acting_as(uid):
        return socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


async def ask(gateway: TestGateway, client: socket.socket, request: str = FROM_PROXY) -> bytes:
    """Return the answer to `request` over a socket, which is closed after it."""
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", gateway.port))
    async with await anyio.abc.SocketStream.from_socket(client) as stream:
        await stream.send(request.encode())
        return await read_all(stream)


def is_forged(answer: bytes) -> bool:
    return answer.startswith(b"HTTP/1.1 403") and b"gatepass_identity_forged" in answer


@pytest.mark.parametrize("path", ["UNIT", "UNIT/worker", "gatepass-test-inner.slice/UNIT"])
async def test_the_unit_of_the_reverse_proxy_may(tmp_path: Path, hierarchy: Hierarchy, path: str) -> None:
    async with gateway_for(hierarchy, tmp_path) as gateway:
        answer = await ask(gateway, socket_in(hierarchy, hierarchy.make(path)))
        assert f'"identity": "{ALICE}"'.encode() in answer


@pytest.mark.parametrize(
    "path",
    [
        "php-fpm.service",
        "php-fpm.service/UNIT",
        "user@33.service/UNIT",
        "user@33.service/app.slice/UNIT",
        "session-1.scope/system.slice/UNIT",
        "UNIT.d",
        ".",
    ],
)
async def test_the_same_user_elsewhere_may_not(tmp_path: Path, hierarchy: Hierarchy, path: str) -> None:
    hierarchy.make("UNIT")
    async with gateway_for(hierarchy, tmp_path) as gateway:
        assert is_forged(await ask(gateway, socket_in(hierarchy, hierarchy.make(path))))
        assert gateway.upstream.connected == 0


async def test_a_user_who_makes_the_cgroup_himself_where_he_may_is_not_the_unit(
    tmp_path: Path, hierarchy: Hierarchy
) -> None:
    delegated = hierarchy.make("user@33.service")
    for path in (delegated, *delegated.glob("cgroup.procs"), *delegated.glob("cgroup.subtree_control")):
        os.chown(path, WWW_DATA, -1)
    async with gateway_for(hierarchy, tmp_path) as gateway:
        with hierarchy.inside(delegated), acting_as(WWW_DATA):
            own = hierarchy.make(f"user@33.service/system.slice/{hierarchy.unit}")
            enter(own)
            client = socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        assert is_forged(await ask(gateway, client))
        with acting_as(WWW_DATA), pytest.raises(PermissionError):
            (hierarchy.top / hierarchy.unit).mkdir()


async def test_another_user_in_the_unit_may_not(tmp_path: Path, hierarchy: Hierarchy) -> None:
    async with gateway_for(hierarchy, tmp_path) as gateway:
        assert is_forged(await ask(gateway, socket_in(hierarchy, hierarchy.make("UNIT"), uid=34)))


async def test_the_same_user_elsewhere_is_a_local_client_like_any_other(tmp_path: Path, hierarchy: Hierarchy) -> None:
    async with gateway_for(hierarchy, tmp_path) as gateway:
        name, value = bearer(gateway.token(uid=WWW_DATA))
        client = socket_in(hierarchy, hierarchy.make("php-fpm.service"))
        answer = await ask(gateway, client, f"GET /echo HTTP/1.0\r\n{name}: {value}\r\n\r\n")
        assert f'"identity": "{USER}"'.encode() in answer


async def test_what_is_left_of_the_unit_from_before_its_restart_may_not(tmp_path: Path, hierarchy: Hierarchy) -> None:
    """Its cgroup is gone and has no name any more; the socket is still open."""
    left = socket_in(hierarchy, hierarchy.make("UNIT"))
    (hierarchy.top / hierarchy.unit).rmdir()
    async with gateway_for(hierarchy, tmp_path) as gateway:
        assert f'"identity": "{ALICE}"'.encode() in await ask(gateway, socket_in(hierarchy, hierarchy.make("UNIT")))
        assert is_forged(await ask(gateway, left))


async def test_where_the_kernel_tells_no_cgroup_nobody_is_the_unit(
    tmp_path: Path, hierarchy: Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sock_diag, "_INET_DIAG_CGROUP_ID", 999)
    async with gateway_for(hierarchy, tmp_path) as gateway:
        assert is_forged(await ask(gateway, socket_in(hierarchy, hierarchy.make("UNIT"))))
