"""Attempts to have a connection that the kernel has redirected count as another user's."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import pytest

from attacks.redirect.machine import (
    GAMES,
    GATEWAY_PORT,
    HOST_V4,
    HOST_V6,
    PROXY_PORT,
    ROOT,
    SECONDS,
    WWW_DATA,
    Machine,
    deafen,
    skip_reason,
)
from gatepass_gateway.clients import Clients
from gatepass_gateway.sock_diag import Address, OwnedSocket, SockDiag
from gatepass_gateway.trusted_proxy import UNKNOWN_CLIENT, Client
from support.gateway import acting_as

pytestmark = pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))

MALLORY, VICTIM = GAMES, WWW_DATA
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
SO_BINDTODEVICE = 25

OTHERS_RULES = f"""
table inet of_another_program {{
    chain redirected {{
        type nat hook output priority -100; policy accept;
        tcp dport {GATEWAY_PORT} fib daddr type local redirect to :{PROXY_PORT}
    }}
}}
"""
"""A redirect as anybody would write it."""


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        yield machine


@pytest.fixture
def sock_diag(machine: Machine) -> Iterator[SockDiag]:
    with machine.host.entered():
        diag = SockDiag()
    with diag:
        yield diag


@pytest.fixture
def clients(sock_diag: SockDiag) -> Clients:
    """What a proxy asks that has [redirect] in its configuration."""
    return Clients(sock_diag, redirected_port=GATEWAY_PORT)


def dial(machine: Machine, uid: int, source: Address, destination: Address) -> socket.socket:
    """Connect from an address and port of the client's choice, which other sockets of any user may have too."""
    client = machine.host.socket(uid, socket.AF_INET6 if ":" in destination[0] else socket.AF_INET)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.settimeout(SECONDS)
    try:
        client.bind(source)
        client.connect(destination)
    except OSError:
        client.close()
        raise
    return client


def accept(machine: Machine) -> socket.socket:
    taken_by, accepted = machine.accept()
    assert taken_by == "proxy"
    return accepted


@pytest.mark.parametrize("uid", [ROOT, MALLORY, VICTIM])
@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.0.2", HOST_V4, "0.0.0.0", "::1", HOST_V6, "::ffff:127.0.0.1", f"::ffff:{HOST_V4}"]
)
def test_whoever_is_redirected_is_himself(machine: Machine, clients: Clients, address: str, uid: int) -> None:
    source = ("::" if ":" in address else "", 0)
    with machine.redirected(), dial(machine, uid, source, (address, GATEWAY_PORT)), accept(machine) as accepted:
        assert clients.at_other_end(accepted).account == Client(uid).account


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize(("uid", "redirected"), [(ROOT, True), (VICTIM, False)])
def test_whoever_dials_the_proxy_itself_is_himself_too(
    machine: Machine, sock_diag: SockDiag, address: str, uid: int, redirected: bool
) -> None:
    clients = Clients(sock_diag, redirected_port=GATEWAY_PORT if redirected else None)
    with (
        machine.redirected() if redirected else nullcontext(),
        dial(machine, uid, ("::" if ":" in address else "", 0), (address, PROXY_PORT)),
        accept(machine) as accepted,
    ):
        assert clients.at_other_end(accepted).account == Client(uid).account


class Way(NamedTuple):
    """From where to where, and to where else from the same port: the kernel leads both to one port of the proxy's."""

    source: str
    to: Address
    another: Address


WAYS = {
    "v4": Way("127.0.0.1", ("127.0.0.2", GATEWAY_PORT), ("127.0.0.3", GATEWAY_PORT)),
    "v4 of the network": Way(HOST_V4, (HOST_V4, GATEWAY_PORT), ("127.0.0.2", GATEWAY_PORT)),
    "v6": Way(HOST_V6, ("::1", GATEWAY_PORT), (HOST_V6, GATEWAY_PORT)),
}
TO_THE_PROXY_ITSELF = {
    "v4 to the proxy itself": Way("127.0.0.1", ("127.0.0.1", PROXY_PORT), ("127.0.0.1", GATEWAY_PORT)),
    "v6 to the proxy itself": Way("::1", ("::1", PROXY_PORT), ("::1", GATEWAY_PORT)),
}


@contextmanager
def taken_port(machine: Machine, way: Way) -> Iterator[Address]:
    """Hold a connection of Mallory's elsewhere. From its address the next one has to leave by another port."""
    with dial(machine, MALLORY, (way.source, 0), way.another) as first, accept(machine):
        yield first.getsockname()[:2]


@pytest.mark.parametrize("way", [*WAYS.values(), *TO_THE_PROXY_ITSELF.values()], ids=[*WAYS, *TO_THE_PROXY_ITSELF])
def test_rules_that_let_the_kernel_change_a_port_make_mallory_the_victim_and_so_nobody_is_known(
    machine: Machine, sock_diag: SockDiag, way: Way
) -> None:
    """His connection gets a port on the way that its own socket does not have. Somebody else's can have it, by chance
    or because he waited for that, and then it is the victim whom the kernel describes."""
    machine.host.nft(OTHERS_RULES)
    with taken_port(machine, way) as address, dial(machine, MALLORY, address, way.to), accept(machine) as his:
        assert his.getpeername()[:2] != address
        with dial(machine, VICTIM, his.getpeername()[:2], way.to):
            believing = Clients(sock_diag, redirected_port=GATEWAY_PORT)
            assert believing.at_other_end(his).account == Client(VICTIM).account, (
                "the kernel tells them apart now: believe it"
            )
            if way.to[1] == GATEWAY_PORT:
                assert Clients(sock_diag).at_other_end(his) == UNKNOWN_CLIENT


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_who_would_get_another_port_gets_nowhere(machine: Machine, clients: Clients, way: Way) -> None:
    with machine.redirected(), taken_port(machine, way) as address:
        with pytest.raises(ConnectionRefusedError):
            dial(machine, MALLORY, address, way.to)
        with dial(machine, VICTIM, (way.source, 0), way.to), accept(machine) as accepted:
            assert clients.at_other_end(accepted).account == Client(VICTIM).account


def test_a_redirect_from_any_other_port_makes_nobody_known(machine: Machine, clients: Clients) -> None:
    machine.host.nft(OTHERS_RULES.replace(str(GATEWAY_PORT), "8080"))
    with dial(machine, VICTIM, ("", 0), ("127.0.0.1", 8080)), accept(machine) as accepted:
        assert clients.at_other_end(accepted) == UNKNOWN_CLIENT


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR])
def test_a_client_that_has_shut_down_is_nobody(machine: Machine, clients: Clients, how: int) -> None:
    to = ("127.0.0.1", GATEWAY_PORT)
    with machine.redirected(), dial(machine, ROOT, ("", 0), to) as client, accept(machine) as accepted:
        client.shutdown(how)
        assert clients.at_other_end(accepted) == UNKNOWN_CLIENT


@pytest.mark.parametrize("redirected", [True, False])
@pytest.mark.parametrize("reset", [True, False])
def test_what_waits_in_the_queue_of_a_client_that_is_gone_is_not_the_next_ones_on_its_port(
    machine: Machine, clients: Clients, reset: bool, redirected: bool
) -> None:
    """What he sent can still be read from the dead connection."""
    to = ("127.0.0.1", GATEWAY_PORT if redirected else PROXY_PORT)
    with machine.redirected() if redirected else nullcontext():
        gone = dial(machine, MALLORY, ("127.0.0.1", 0), to)
        address = gone.getsockname()
        gone.sendall(b"GET /mallorys HTTP/1.1\r\n\r\n")
        if reset:
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        gone.close()
        if not reset:
            with accept(machine) as accepted:
                assert clients.at_other_end(accepted) == UNKNOWN_CLIENT
        with dial(machine, VICTIM, address, to):
            ends = [accept(machine) for _ in range(2 if reset else 1)]
            for end in ends:
                end.settimeout(SECONDS)
            assert [clients.at_other_end(end).account for end in ends] == [
                *[UNKNOWN_CLIENT.account] * reset,
                Client(VICTIM).account,
            ]
            for end in ends:
                end.close()


class Interrupted(SockDiag):
    """The kernel is asked a moment late: when the client has made room for another."""

    def __init__(self, machine: Machine, client: socket.socket, destination: Address) -> None:
        super().__init__()
        self._machine, self._client, self._destination = machine, client, destination
        self.victim: socket.socket | None = None

    def connected(self, local: Address, remote: Address) -> OwnedSocket | None:
        address = self._client.getsockname()
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._client.close()
        self.victim = dial(self._machine, VICTIM, address, self._destination)
        found = super().connected(local, remote)
        assert found is not None
        assert found.uid == VICTIM
        return found


@pytest.mark.parametrize("redirected", [True, False])
def test_a_client_that_makes_room_for_another_in_the_moment_of_the_question(machine: Machine, redirected: bool) -> None:
    to = ("127.0.0.1", GATEWAY_PORT if redirected else PROXY_PORT)
    with machine.redirected() if redirected else nullcontext():
        client = dial(machine, MALLORY, ("127.0.0.1", 0), to)
        with accept(machine) as accepted:
            with machine.host.entered():
                diag = Interrupted(machine, client, to)
            with diag:
                assert Clients(diag, redirected_port=GATEWAY_PORT).at_other_end(accepted) == UNKNOWN_CLIENT
                assert diag.victim is not None
                diag.victim.close()


@pytest.mark.parametrize(
    ("mallorys", "victims", "redirected"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.1", False),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        (HOST_V4, HOST_V4, True),
        ("::1", "::1", True),
        ("::1", "::1", False),
    ],
)
def test_who_has_the_same_address_and_port_makes_nobody_known(
    machine: Machine, clients: Clients, mallorys: str, victims: str, redirected: bool
) -> None:
    """Once a socket is bound to a device, the kernel gives its port to the next as well. It tells of that one, and what
    the first one sends arrives as if it were that one's: here the first has stopped listening, and can still send."""
    machine.host.sysctl("ipv4/ip_local_port_range", "40000 40001")  # any user can foretell which is the next
    with machine.redirected() if redirected else nullcontext():
        port = GATEWAY_PORT if redirected else PROXY_PORT
        with dial_from_any_port(machine, MALLORY, (mallorys, port)) as mallory:
            with machine.host.entered(), acting_as(MALLORY):
                device = b"bridge0" if mallorys == HOST_V4 else b"lo"
                mallory.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, device)
                deafen(mallory, mallorys)
            mallory.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            with accept(machine) as his:
                his.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            with dial_from_any_port(machine, VICTIM, (victims, port)) as victim, accept(machine) as accepted:
                assert victim.getsockname()[1] == mallory.getsockname()[1]
                assert clients.at_other_end(accepted) == UNKNOWN_CLIENT
        with dial_from_any_port(machine, VICTIM, (victims, port)), accept(machine) as accepted:
            assert clients.at_other_end(accepted).account == Client(VICTIM).account


def dial_from_any_port(machine: Machine, uid: int, destination: Address) -> socket.socket:
    """Connect as most programs do."""
    client = machine.host.socket(uid, socket.AF_INET6 if ":" in destination[0] else socket.AF_INET)
    client.settimeout(SECONDS)
    client.connect(destination)
    return client


def test_a_port_that_is_used_again_is_its_new_owners(machine: Machine, clients: Clients) -> None:
    """Conntrack remembers the connection before for minutes."""
    to = ("127.0.0.1", GATEWAY_PORT)
    source: Address = ("127.0.0.1", 0)
    with machine.redirected():
        for uid in (MALLORY, VICTIM, ROOT, MALLORY):
            with dial(machine, uid, source, to) as client, accept(machine) as accepted:
                source = client.getsockname()
                assert clients.at_other_end(accepted).account == Client(uid).account
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
