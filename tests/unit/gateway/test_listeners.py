"""Sockets that the service manager hands over, and which of them are refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from gatepass.daemon.systemd import Inherited
from gatepass.errors import ConfigurationError
from gatepass_gateway.listeners import listeners
from gatepass_gateway.sock_diag import Address, SockDiag

BACKLOG = 7


class Manager:
    """Holds sockets, and hands a descriptor of its own over for each."""

    def __init__(self, parts: ExitStack) -> None:
        self._parts = parts
        self.held: list[socket.socket] = []

    def listen(self, host: str = "127.0.0.1", *, v6_only: bool = True) -> Address:
        held = self._parts.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
        if ":" in host:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
        held.bind((host, 0))
        held.listen(BACKLOG)
        return self.keep(held)

    def keep(self, held: socket.socket) -> Address:
        self.held.append(self._parts.enter_context(held))
        host, port = held.getsockname()[:2]
        return host, port

    def hand_over(self) -> list[Inherited]:
        return [Inherited("gateway", os.dup(held.fileno())) for held in self.held]


@pytest.fixture
def parts() -> Iterator[ExitStack]:
    with ExitStack() as parts:
        yield parts


@pytest.fixture
def manager(parts: ExitStack) -> Manager:
    return Manager(parts)


def take(addresses: list[Address], inherited: list[Inherited], parts: ExitStack) -> list[socket.socket]:
    with SockDiag() as sock_diag:
        return listeners(addresses, inherited, sock_diag, parts)


def test_what_is_handed_over_serves_and_outlives_us(manager: Manager, parts: ExitStack) -> None:
    addresses = [manager.listen(), manager.listen("::1")]
    with ExitStack() as ours:
        taken = take(addresses, manager.hand_over(), ours)

        assert sorted(listener.getsockname()[:2] for listener in taken) == sorted(addresses)
        assert not any(listener.getblocking() for listener in taken)
        inodes = {os.fstat(held.fileno()).st_ino for held in manager.held}
        assert {os.fstat(listener.fileno()).st_ino for listener in taken} == inodes
        waiting = [parts.enter_context(socket.create_connection(address)) for address in addresses]
    for held, client in zip(manager.held, waiting, strict=True):
        held.setblocking(True)
        accepted, _ = held.accept()
        with accepted:
            assert accepted.getpeername() == client.getsockname()


def test_the_queues_length_stays_as_the_manager_has_set_it(manager: Manager, parts: ExitStack) -> None:
    address = manager.listen()
    take([address], manager.hand_over(), parts)
    for _ in range(BACKLOG + 1):  # a queue of n takes n + 1
        parts.enter_context(socket.create_connection(address, timeout=1))
    with pytest.raises(TimeoutError):
        socket.create_connection(address, timeout=0.2)


def test_where_nothing_is_handed_over_the_ports_are_bound(manager: Manager, parts: ExitStack) -> None:
    address = manager.listen()
    manager.held[0].close()
    [listener] = take([address], [], parts)
    assert listener.getsockname() == address


def refusal(addresses: list[Address], inherited: list[Inherited]) -> str:
    with ExitStack() as parts, pytest.raises(ConfigurationError) as caught:
        take(addresses, inherited, parts)
    assert caught.value.where == "listen"
    return caught.value.message


def test_all_addresses_are_handed_over_or_none(manager: Manager) -> None:
    there = manager.listen()
    message = refusal([there, ("::1", there[1])], manager.hand_over())
    assert f"does not hand over ::1 port {there[1]}" in message
    assert "ListenStream=" in message


def test_what_is_not_configured_is_not_served(manager: Manager) -> None:
    wanted, other = manager.listen(), manager.listen("127.0.0.2")
    message = refusal([wanted], manager.hand_over())
    assert f"hands over 127.0.0.2 port {other[1]}, which is not configured" in message


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_socket_that_other_machines_reach_is_not_the_configured_one(manager: Manager, host: str) -> None:
    _, port = manager.listen(host)
    assert f"hands over {host} port {port}" in refusal([("127.0.0.1", port)], manager.hand_over())


def test_ipv6_alone_must_hold_for_what_is_handed_over(manager: Manager) -> None:
    """For ::1 the kernel sees to that."""
    address = manager.listen("::ffff:127.0.0.1", v6_only=False)
    assert "also takes IPv4" in refusal([address], manager.hand_over())


def _unix() -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")
    listener.listen()
    return listener


def _bound() -> socket.socket:
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    return held


def _multipath() -> socket.socket:
    held = socket.socket(proto=262)  # IPPROTO_MPTCP
    held.bind(("127.0.0.1", 0))
    held.listen()
    return held


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: socket.socket(type=socket.SOCK_DGRAM), "is no TCP socket"),
        (_unix, "is no TCP socket"),
        (_multipath, "is no TCP socket"),
        (_bound, "does not listen"),
    ],
    ids=["udp", "unix", "multipath tcp", "bound only"],
)
def test_what_is_no_listening_tcp_socket_is_refused(
    manager: Manager, make: Callable[[], socket.socket], fault: str
) -> None:
    address = manager.listen()
    try:
        manager.held.append(make())
    except OSError:
        pytest.skip("this kernel has no such sockets")
    with manager.held[-1]:
        message = refusal([address], manager.hand_over())
    assert f"('gateway') from the service manager {fault}" in message
    assert "in the socket unit" in message


def test_what_is_no_socket_is_refused(manager: Manager) -> None:
    address = manager.listen()
    other = Inherited("left over", os.open("/dev/null", os.O_RDONLY))
    try:
        assert "('left over') from the service manager is no socket" in refusal(
            [address], [*manager.hand_over(), other]
        )
    finally:
        os.close(other.descriptor)


def test_the_same_address_twice_is_refused(manager: Manager) -> None:
    """One of the two would be served, and what is in the other's queue never."""
    address: Address = ("127.0.0.1", 0)
    for _ in range(2):
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
        held.listen()
        address = manager.keep(held)
    assert "twice" in refusal([address], manager.hand_over())
