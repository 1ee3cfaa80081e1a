"""Who is at the other end, asked about real connections; tests/attacks has the redirected ones and the units."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from gatepass_gateway.clients import Clients, ReverseProxy
from gatepass_gateway.original_destination import original_destination
from gatepass_gateway.sock_diag import SockDiag
from gatepass_gateway.trusted_proxy import UNKNOWN_CLIENT, Client
from gatepass_gateway.units import Units
from support.gateway import acting_as

OWN = os.geteuid()
NO_UNITS = Units(None)
Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def sock_diag() -> Iterator[SockDiag]:
    with SockDiag() as diag:
        yield diag


@pytest.fixture(params=["127.0.0.1", "::1", "both"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """Both ends of a connection: the client's and the accepted one. 'both': IPv4, to a listener for both families."""
    family = socket.AF_INET if request.param == "127.0.0.1" else socket.AF_INET6
    host = "::" if request.param == "both" else request.param
    to = "127.0.0.1" if request.param == "both" else request.param
    with socket.create_server((host, 0), family=family, dualstack_ipv6=request.param == "both") as listener:
        client = socket.create_connection((to, listener.getsockname()[1]))
        accepted, _ = listener.accept()
        with client, accepted:
            yield client, accepted


def test_the_owner_of_a_connection_is_its_client(sock_diag: SockDiag, ends: Ends) -> None:
    assert Clients(sock_diag).at_other_end(ends[1]).account == Client(OWN).account


def test_a_connection_that_was_not_redirected_went_to_our_own_end(ends: Ends) -> None:
    client, accepted = ends
    assert original_destination(accepted) == client.getpeername()[:2]


def test_what_is_gone_was_nobodys(sock_diag: SockDiag, ends: Ends) -> None:
    client, accepted = ends
    client.close()
    assert Clients(sock_diag, [ReverseProxy(OWN), ReverseProxy(0)]).at_other_end(accepted) == UNKNOWN_CLIENT
    accepted.close()
    assert Clients(sock_diag).at_other_end(accepted) == UNKNOWN_CLIENT


@pytest.mark.parametrize(
    ("proxies", "counts"),
    [
        ([ReverseProxy(OWN)], True),
        ([ReverseProxy(OWN + 1)], False),
        ([ReverseProxy(OWN, "nginx.service")], False),
        ([ReverseProxy(OWN, "nginx.service"), ReverseProxy(OWN)], True),
        ([], False),
    ],
)
def test_the_reverse_proxy_is_one_of_those_named_by_user_and_unit(
    sock_diag: SockDiag, ends: Ends, proxies: list[ReverseProxy], counts: bool
) -> None:
    assert Clients(sock_diag, proxies, units=NO_UNITS).at_other_end(ends[1]).account == Client(OWN, counts).account


@pytest.mark.root
@pytest.mark.skipif(OWN != 0, reason="acts as another user")
def test_a_connection_that_is_accepted_from_roots_listener_is_the_accepting_users(sock_diag: SockDiag) -> None:
    """A listener of systemd's is root's, and root is no stranger; what is accepted from it is the proxy's own."""
    proxy = 64_901
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        assert sock_diag.strangers_on(listener.getsockname(), proxy) == set()
        with acting_as(proxy):
            accepted, _ = listener.accept()
        with accepted:
            found = sock_diag.connected(accepted.getsockname(), client.getsockname())
            assert found is not None
            assert found.uid == proxy
            assert sock_diag.strangers_on(listener.getsockname(), proxy) == set()
            assert sock_diag.strangers_on(listener.getsockname(), proxy + 1) == {proxy}
