"""While the proxy is stopped, nobody who takes its port gets a byte: not even where any user may take that port."""

from __future__ import annotations

import select
import socket
import time
from contextlib import ExitStack, suppress

import pytest

from attacks.redirect.machine import (
    GAMES,
    GATEWAY,
    GATEWAY_PORT,
    HOST_V4,
    HOST_V6,
    PROXY,
    PROXY_PORT,
    ROOT,
    SILENCE,
    WWW_DATA,
    Machine,
    opened_by_half,
    skip_reason,
)
from gatepass.daemon.addresses import REDIRECTED_TO

pytestmark = pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))

SOMEWHERE = 40_500
TCP_FASTOPEN, TCP_FASTOPEN_NO_COOKIE = 23, 34


@pytest.fixture
def impostor(machine: Machine) -> Machine:
    """A machine on which another user has the proxy's port."""
    machine.hush("proxy")
    for address in REDIRECTED_TO:
        machine.listen("impostor", WWW_DATA, address, PROXY_PORT)
    return machine


@pytest.mark.parametrize("address", REDIRECTED_TO)
def test_a_connection_to_whoever_else_listens_there_never_completes(impostor: Machine, address: str) -> None:
    assert impostor.dial(GAMES, address, PROXY_PORT) == "impostor"
    with impostor.redirected():
        assert [impostor.dial(uid, address) for uid in (GAMES, ROOT, WWW_DATA)] == ["nobody"] * 3
        assert impostor.dial(ROOT, address, PROXY_PORT) == "nobody"
        assert _nobody_has_a_connection(impostor)
    assert impostor.dial(ROOT, address, PROXY_PORT) == "nobody"


@pytest.mark.parametrize("address", REDIRECTED_TO)
def test_nobody_dials_the_proxy_itself_but_root_and_the_proxy(machine: Machine, address: str) -> None:
    """Whoever does has a port there that the kernel would have to change for somebody whom the redirect leads there."""
    everybody = {ROOT: "proxy", PROXY: "proxy", GAMES: "refused", WWW_DATA: "refused", GATEWAY: "refused"}
    assert {uid: machine.dial(uid, address, PROXY_PORT) for uid in everybody} == dict.fromkeys(everybody, "proxy")
    with machine.redirected():
        assert {uid: machine.dial(uid, address, PROXY_PORT) for uid in everybody} == everybody
    assert {uid: machine.dial(uid, address, PROXY_PORT) for uid in everybody} == everybody


@pytest.mark.parametrize("uid", [ROOT, PROXY], ids=["held by root", "the proxy's own"])
def test_the_proxys_own_socket_is_answered(machine: Machine, uid: int) -> None:
    """Held by root, as socket units are, while the proxy is stopped and afterwards."""
    machine.hush("proxy")
    machine.listen("proxy", uid, "127.0.0.1", PROXY_PORT)
    with machine.redirected():
        assert machine.dial(GAMES, "127.0.0.1") == "proxy"
    assert machine.dial(ROOT, "127.0.0.1", PROXY_PORT) == "proxy"


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_a_listener_on_every_address_is_not_answered_either(machine: Machine, address: str) -> None:
    machine.hush("proxy")
    machine.listen("impostor", WWW_DATA, address, PROXY_PORT)
    with machine.redirected():
        assert machine.dial(GAMES, "127.0.0.1" if address == "0.0.0.0" else "::1") == "nobody"


@pytest.mark.parametrize("impostor_first", [True, False], ids=["the impostor dials first", "the client dials first"])
def test_a_simultaneous_open_from_the_proxys_port_never_completes(machine: Machine, impostor_first: bool) -> None:
    """RFC 9293 section 3.5: two sockets that dial each other are connected, and none of them has listened."""
    machine.hush("proxy")
    # What is sent to a port where nobody waits yet must stay unanswered, as it would a moment later.
    machine.host.nft("table inet late { chain out { type filter hook output priority 0; tcp flags rst drop; }\n}")
    assert _meet(machine, 40_001, impostor_first, GAMES, PROXY_PORT) == b"a secret"
    with machine.redirected():
        assert _meet(machine, 40_002, impostor_first, GAMES, GATEWAY_PORT) == b""
        assert _meet(machine, 40_003, impostor_first, ROOT, PROXY_PORT) == b""
    assert _meet(machine, 40_004, impostor_first, ROOT, PROXY_PORT) == b""


def _meet(machine: Machine, port: int, impostor_first: bool, uid: int, dialled: int) -> bytes:
    """Have an impostor dial a client that dials the proxy; return what the impostor gets of what the client sends."""
    with machine.host.socket(WWW_DATA) as impostor, machine.host.socket(uid) as client:
        ends = [(impostor, PROXY_PORT, port), (client, port, dialled)]
        for end, own, _ in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            end.bind(("127.0.0.1", own))
            end.setblocking(False)
        for end, _, other in ends if impostor_first else reversed(ends):
            end.connect_ex(("127.0.0.1", other))
        time.sleep(0.1)
        with suppress(BlockingIOError, ConnectionError):
            client.send(b"a secret")
        time.sleep(SILENCE)
        with suppress(BlockingIOError, ConnectionError):
            return impostor.recv(100)
    return b""


def test_who_was_on_the_gateways_port_first_does_not_swallow_what_the_proxy_dials(machine: Machine) -> None:
    """Bound before the gateway listens, and dialling the port from which the proxy dials next."""
    machine.hush("gateway")
    with machine.host.socket(WWW_DATA) as before, machine.host.socket(WWW_DATA) as during:
        for squatter in (before, during):
            squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            squatter.bind(("127.0.0.1", GATEWAY_PORT))
            squatter.setblocking(False)
        machine.listen("gateway", GATEWAY, "127.0.0.1", GATEWAY_PORT)
        assert _dialled_by_a_squatter(machine, before, SOMEWHERE) == "nobody"
        with machine.redirected():
            assert _dialled_by_a_squatter(machine, during, SOMEWHERE + 1) == "gateway"


def _dialled_by_a_squatter(machine: Machine, squatter: socket.socket, port: int) -> str:
    """Have a socket on the gateway's port dial `port` for ever; return who gets what the proxy sends from there."""
    with machine.host.listener(WWW_DATA, "127.0.0.1", port) as deaf:
        deaf.listen(0)
        with machine.host.socket(GAMES) as first:
            first.connect(("127.0.0.1", port))  # its queue is full, and whoever else dials is not answered
            squatter.connect_ex(("127.0.0.1", port))
            time.sleep(0.1)
    with machine.host.socket(PROXY) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("127.0.0.1", port))
        client.settimeout(SILENCE)
        client.connect(("127.0.0.1", GATEWAY_PORT))
        if not select.select(machine.listeners["gateway"], [], [], SILENCE)[0]:
            return "nobody"
        taken_by, accepted = machine.accept()
        accepted.close()
        return taken_by


@pytest.mark.parametrize(
    ("source", "first", "reached", "then"),
    [
        ("127.0.0.1", ("127.0.0.2", GATEWAY_PORT), "proxy", "127.0.0.1"),
        ("127.0.0.1", (HOST_V4, GATEWAY_PORT), "proxy", "127.0.0.1"),
        ("127.0.0.1", ("127.0.0.1", PROXY_PORT), "refused", "127.0.0.1"),
        ("127.0.0.1", ("127.0.0.1", 81), "refused", "127.0.0.1"),
        ("::1", (HOST_V6, GATEWAY_PORT), "refused", "::1"),
        ("::1", ("::1", PROXY_PORT), "refused", "::1"),
        ("::1", ("::1", 81), "refused", "::1"),
    ],
)
def test_who_takes_a_port_first_keeps_nobody_out_at_the_loopback_addresses(
    machine: Machine, source: str, first: tuple[str, int], reached: str, then: str
) -> None:
    """Two connections from one address and port that lead to one place: the kernel changes the second one's port."""
    others = f"type nat hook output priority -150; tcp dport 81 redirect to :{PROXY_PORT};"
    machine.host.nft(f"table inet other {{ chain out {{ {others} }}\n}}")
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    with machine.redirected(), ExitStack() as held:
        for uid, address, port, expected in ((WWW_DATA, *first, reached), (GAMES, then, GATEWAY_PORT, "proxy")):
            client = held.enter_context(machine.host.socket(uid, family))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind((source, SOMEWHERE))
            assert machine.reached(client, address, port) == expected


def test_who_takes_a_port_first_keeps_the_next_out_at_other_addresses(machine: Machine) -> None:
    """A limit, in docs/threat-model.md: whose port the kernel would have to change is refused, for its owner's sake."""
    with machine.redirected(), ExitStack() as held:
        for uid, address, reached in ((WWW_DATA, "127.0.0.2", "proxy"), (GAMES, "127.0.0.3", "refused")):
            client = held.enter_context(machine.host.socket(uid))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind(("127.0.0.1", SOMEWHERE))
            assert machine.reached(client, address) == reached


@pytest.mark.parametrize("address", ["127.0.0.1", HOST_V4, "::1"])
def test_who_opens_many_connections_by_half_keeps_nobody_out(machine: Machine, address: str) -> None:
    """The kernel then answers with SYN cookies, from no socket. He needs no answer."""
    with machine.redirected(), opened_by_half(machine, address, GATEWAY_PORT):
        assert machine.dial(GAMES, address) == "proxy"


@pytest.mark.parametrize("address", ["127.0.0.1", HOST_V4, "::1"])
def test_on_a_machine_whose_every_answer_is_a_cookie_the_proxy_is_reached(machine: Machine, address: str) -> None:
    machine.host.sysctl("ipv4/tcp_syncookies", 2)
    with machine.redirected():
        assert machine.dial(GAMES, address) == "proxy"


@pytest.mark.parametrize("address", REDIRECTED_TO)
def test_nor_does_that_let_an_impostor_answer(impostor: Machine, address: str) -> None:
    with opened_by_half(impostor, address, PROXY_PORT):
        assert impostor.dial(GAMES, address, PROXY_PORT) == "impostor"
        with impostor.redirected():
            assert impostor.dial(GAMES, address) == "nobody"
            assert impostor.dial(ROOT, address, PROXY_PORT) == "nobody"


@pytest.mark.parametrize(("cookie", "size"), [(True, 20), (True, 150), (False, 150)])
def test_nothing_is_sent_by_fast_open(impostor: Machine, cookie: bool, size: int) -> None:
    """It brings data before the handshake. Who listens may ask for no cookie, and no client need ask for one."""
    impostor.host.sysctl("ipv4/tcp_fastopen", 3)
    for listener in impostor.listeners["impostor"]:
        listener.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 5)
        listener.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, not cookie)
    if cookie:
        _send_at_once(impostor, b"the first time there is none", cookie, GAMES, PROXY_PORT)
    assert _send_at_once(impostor, bytes(size), cookie, GAMES, PROXY_PORT)
    with impostor.redirected():
        assert _send_at_once(impostor, bytes(size), cookie, GAMES, GATEWAY_PORT) == b""
        assert _send_at_once(impostor, bytes(size), cookie, ROOT, PROXY_PORT) == b""
    assert _send_at_once(impostor, bytes(size), cookie, ROOT, PROXY_PORT) == b""


def test_a_client_with_fast_open_reaches_the_proxy_by_a_second_try(machine: Machine) -> None:
    with machine.redirected(), machine.host.socket(GAMES) as client:
        client.settimeout(None)
        client.sendto(b"hello", socket.MSG_FASTOPEN, ("127.0.0.1", GATEWAY_PORT))
        taken_by, accepted = machine.accept()
        with accepted:
            assert (taken_by, accepted.recv(5, socket.MSG_WAITALL)) == ("proxy", b"hello")


def _send_at_once(machine: Machine, data: bytes, cookie: bool, uid: int, port: int) -> bytes:
    """Dial with data in the first packet; return what arrives of it, before the handshake is tried without."""
    with machine.host.socket(uid) as client:
        client.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, not cookie)
        client.setblocking(False)
        with suppress(BlockingIOError):
            client.sendto(data, socket.MSG_FASTOPEN, ("127.0.0.1", port))
        if not _nobody_has_a_connection(machine, SILENCE):
            _, accepted = machine.accept()
            with accepted:
                accepted.settimeout(SILENCE)
                with suppress(TimeoutError):
                    return accepted.recv(100)
    return b""


def _nobody_has_a_connection(machine: Machine, seconds: float = 0) -> bool:
    return not select.select(machine.listeners["impostor"], [], [], seconds)[0]
