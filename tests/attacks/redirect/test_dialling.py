"""Whoever dials the gateway's port gets the proxy, or nobody; only the proxy gets the gateway."""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import anyio
import pytest

from attacks.redirect.machine import (
    CONTAINER_V4,
    CONTAINER_V6,
    FROM_CONTAINER,
    GAMES,
    GATEWAY,
    GATEWAY_PORT,
    HOST_V4,
    HOST_V6,
    PROXY,
    PROXY_PORT,
    ROOT,
    SECONDS,
    SILENCE,
    WWW_DATA,
    Machine,
    deafen,
    eventually,
    opened_by_half,
    skip_reason,
)
from gatepass_gateway.sock_diag import SockDiag
from gatepass_gateway.upstream import Upstream, UpstreamSettings, Way
from support.gateway import acting_as

pytestmark = pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))

EVERYBODY_ELSE = (ROOT, GAMES, WWW_DATA, GATEWAY)
OWN_ADDRESSES = [
    "127.0.0.1",
    "127.0.0.2",
    "127.7.7.7",
    "0.0.0.0",
    HOST_V4,
    "::1",
    "::",
    HOST_V6,
    "::ffff:127.0.0.1",
    f"::ffff:{HOST_V4}",
]
IPPROTO_MPTCP = 262
needs_mptcp = pytest.mark.skipif(not Path("/proc/sys/net/mptcp").is_dir(), reason="this kernel has no MPTCP")
SO_BINDTODEVICE = 25
IPV6_RTHDR = 57


@pytest.mark.parametrize("address", OWN_ADDRESSES)
def test_at_every_own_address_everybody_gets_the_proxy_which_gets_the_gateway_and_without_the_holder_nobody_else(
    machine: Machine, address: str
) -> None:
    assert machine.dial(WWW_DATA, address) == "gateway"
    with machine.redirected():
        assert [machine.dial(uid, address) for uid in EVERYBODY_ELSE] == ["proxy"] * len(EVERYBODY_ELSE)
        assert machine.dial(PROXY, address) == "gateway"
    assert [machine.dial(uid, address) for uid in EVERYBODY_ELSE] == ["refused"] * len(EVERYBODY_ELSE)
    assert machine.dial(PROXY, address) == "gateway"


def test_a_program_of_another_user_is_redirected_too(machine: Machine) -> None:
    """A process that was another user before it opened the socket, as real ones are."""
    with machine.redirected(), machine.host.entered():
        command = f"exec 3<>/dev/tcp/127.0.0.1/{GATEWAY_PORT}"
        subprocess.run(["bash", "-c", command], user=GAMES, group=60, extra_groups=[], check=True, timeout=SECONDS)
        taken_by, accepted = machine.accept()
        accepted.close()
    assert taken_by == "proxy"


@pytest.mark.parametrize("source", ["127.7.7.7", HOST_V4])
def test_no_source_address_makes_a_difference(machine: Machine, source: str) -> None:
    with machine.redirected(), machine.host.socket(WWW_DATA) as client:
        client.bind((source, 0))
        assert machine.reached(client, "127.0.0.1") == "proxy"


@needs_mptcp
@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_mptcp_is_redirected(machine: Machine, family: int, address: str) -> None:
    with machine.redirected(), machine.host.socket(WWW_DATA, family, protocol=IPPROTO_MPTCP) as client:
        assert machine.reached(client, address) == "proxy"


@needs_mptcp
def test_a_packet_whose_owner_the_kernel_cannot_tell_does_not_get_past(machine: Machine) -> None:
    """It opens the further subflows of MPTCP by itself, and to the rules nobody has sent them."""
    with machine.host.socket(GATEWAY, protocol=IPPROTO_MPTCP) as listener:
        machine.hush("gateway")
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", GATEWAY_PORT))
        listener.listen()
        machine.listeners["gateway"] = [listener]
        machine.host.run("ip mptcp limits set subflows 1")
        machine.host.run(f"ip mptcp endpoint add {HOST_V4} subflow")

        with _mptcp_connection(machine):
            eventually(lambda: _subflows(machine))
        with machine.redirected(), _mptcp_connection(machine):
            time.sleep(SILENCE)
            assert not _subflows(machine)
        with _mptcp_connection(machine):
            time.sleep(SILENCE)
            assert not _subflows(machine)


@contextmanager
def _mptcp_connection(machine: Machine) -> Iterator[None]:
    with machine.host.socket(PROXY, protocol=IPPROTO_MPTCP) as client:
        client.settimeout(SECONDS)
        client.connect(("127.0.0.1", GATEWAY_PORT))
        taken_by, accepted = machine.accept()
        assert taken_by == "gateway"
        with accepted:
            _echo(client, accepted)
            yield


def _subflows(machine: Machine) -> str:
    return machine.host.run(f"ss -tnH state established src {HOST_V4} dst 127.0.0.1:{GATEWAY_PORT}")


@pytest.mark.parametrize("device", ["lo", "bridge0", "port0"])
@pytest.mark.parametrize("address", ["127.0.0.1", HOST_V4])
def test_a_socket_bound_to_a_device_does_not_get_past(machine: Machine, device: str, address: str) -> None:
    """Any user may do that since Linux 5.7."""
    with machine.redirected(), machine.host.socket(WWW_DATA) as client:
        with machine.host.entered(), acting_as(WWW_DATA):
            client.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, device.encode())
        assert machine.reached(client, address) in ("proxy", "nobody")


@pytest.mark.parametrize(
    ("via", "address"), [("::1", HOST_V6), (HOST_V6, "::1"), (CONTAINER_V6, HOST_V6)], ids=["lo", "own", "container"]
)
def test_source_routing_does_not_get_past(machine: Machine, via: str, address: str) -> None:
    """Any user may write a segment routing header; that the machine follows it is for its administrator to allow."""
    for namespace in (machine.host, machine.container):
        namespace.sysctl("ipv6/conf/all/forwarding", 1)
        for device in ("all", "lo", "bridge0" if namespace is machine.host else "eth0"):
            namespace.sysctl(f"ipv6/conf/{device}/seg6_enabled", 1)
    assert _source_routed(machine, via, address) == "gateway"
    with machine.redirected():
        assert _source_routed(machine, via, address) in ("refused", "nobody")
    assert _source_routed(machine, via, address) in ("refused", "nobody")


def _source_routed(machine: Machine, via: str, address: str) -> str:
    segments = b"".join(socket.inet_pton(socket.AF_INET6, each) for each in (address, via))
    header = bytes((0, len(segments) // 8, 4, 1, 1, 0, 0, 0)) + segments  # RFC 8754 section 2
    with machine.host.socket(WWW_DATA, socket.AF_INET6) as client:
        with acting_as(WWW_DATA):
            client.setsockopt(socket.IPPROTO_IPV6, IPV6_RTHDR, header)
        return machine.reached(client, address)


def test_a_link_local_address_does_not_get_past(machine: Machine) -> None:
    """The kernel cannot redirect those: their source has no way to ::1."""
    machine.host.run("ip address add fe80::77/64 dev bridge0 nodad")
    with machine.host.entered():
        scope = socket.if_nametoindex("bridge0")

    def dial() -> str:
        with machine.host.socket(WWW_DATA, socket.AF_INET6) as client:
            client.settimeout(SILENCE)
            try:
                client.connect(("fe80::77", GATEWAY_PORT, 0, scope))
            except OSError:
                return "nobody"
            taken_by, accepted = machine.accept()
            accepted.close()
            return taken_by

    eventually(lambda: dial() == "gateway")
    with machine.redirected():
        assert dial() == "nobody"
    assert dial() == "nobody"


def test_an_address_that_a_route_makes_local_for_some_users_only_does_not_get_past(machine: Machine) -> None:
    """What is local to the rules is not all that ends up here: a transparent proxy or a VPN makes such routes."""
    machine.host.run(f"ip -6 rule add uidrange {WWW_DATA}-{WWW_DATA} lookup 100 pref 5")
    machine.host.run(f"ip -6 route add local fd50::/64 dev lo table 100 src {HOST_V6}")
    assert machine.dial(WWW_DATA, "fd50::1") == "gateway"
    with machine.redirected():
        assert machine.dial(WWW_DATA, "fd50::1") == "refused"
    assert machine.dial(WWW_DATA, "fd50::1") == "refused"


@pytest.mark.parametrize("port", [GATEWAY_PORT, PROXY_PORT])
def test_a_client_whose_port_the_kernel_changes_on_the_way_is_refused(machine: Machine, port: int) -> None:
    """The proxy would take him for whoever has that port; `attacks/gateway/test_redirected.py` shows how."""
    with machine.redirected(), machine.host.socket(WWW_DATA) as first, machine.host.socket(ROOT) as second:
        for client in (first, second):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind(("127.0.0.1", 40_000))
        assert machine.reached(first, "127.0.0.2") == "proxy"
        assert machine.reached(second, "127.0.0.3" if port == GATEWAY_PORT else "127.0.0.2", port) == "refused"


# What other programs of root's do to packets.

NO_TRACKING = """
table inet other {
    chain out { type filter hook output priority raw; oif lo notrack; }
    chain in { type filter hook prerouting priority raw; iif lo notrack; }
}
"""
TRANSLATION = f"""
table inet other {{
    chain out {{
        type nat hook output priority -150;
        ip daddr 203.0.113.5 tcp dport 80 dnat ip to 127.0.0.1:{GATEWAY_PORT}
        ip daddr 127.0.0.1 tcp dport 81 redirect to :{GATEWAY_PORT}
        ip6 daddr ::1 tcp dport 81 redirect to :{GATEWAY_PORT}
        tcp dport {GATEWAY_PORT} redirect to :83
    }}
}}
"""
TRANSLATION_OF_ARRIVALS = f"""
table inet other {{
    chain in {{ type nat hook prerouting priority -150; tcp dport 81 redirect to :{GATEWAY_PORT}; }}
}}
"""


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", HOST_V4])
def test_without_connection_tracking_there_is_no_redirect_and_nobody_gets_past(machine: Machine, address: str) -> None:
    machine.host.nft(NO_TRACKING)
    assert machine.dial(WWW_DATA, address) == "gateway"
    with machine.redirected():
        assert [machine.dial(uid, address) for uid in EVERYBODY_ELSE] == ["refused"] * len(EVERYBODY_ELSE)
        assert machine.dial(PROXY, address) == "gateway"


@pytest.mark.parametrize(("address", "port"), [("203.0.113.5", 80), ("127.0.0.1", 81), ("::1", 81)])
def test_another_programs_address_translation_does_not_lead_to_the_gateway(
    machine: Machine, address: str, port: int
) -> None:
    machine.host.run(f"ip route add 203.0.113.0/24 via {CONTAINER_V4}")
    machine.host.nft(TRANSLATION)
    assert machine.dial(WWW_DATA, address, port) == "gateway"
    with machine.redirected():
        assert machine.dial(WWW_DATA, address, port) == "refused"
        assert machine.dial(WWW_DATA, "127.0.0.1") == "proxy"
    assert machine.dial(WWW_DATA, address, port) == "refused"


@pytest.mark.parametrize(
    ("family", "hook"),
    [
        ("inet", "output priority 2000"),
        ("inet", "postrouting priority 300"),
        ("inet", "prerouting priority -350"),
        ("netdev", "ingress device lo priority 0"),
    ],
)
def test_a_port_that_is_rewritten_without_translation_does_not_lead_to_the_gateway(
    machine: Machine, family: str, hook: str
) -> None:
    """After the rules have judged where a packet goes, or where no rule of theirs can be."""
    machine.host.nft(
        f"""table {family} other {{
    chain rewritten {{
        type filter hook {hook};
        tcp dport 81 tcp dport set {GATEWAY_PORT}
        tcp sport {GATEWAY_PORT} tcp dport 40001-40003 tcp sport set 81
    }}
}}
"""
    )

    def dial_from(port: int) -> str:
        with machine.host.socket(WWW_DATA) as client:
            client.bind(("127.0.0.1", port))
            return machine.reached(client, "127.0.0.1", 81)

    assert dial_from(40_001) == "gateway"
    with machine.redirected():
        assert dial_from(40_002) in ("refused", "nobody")
        assert machine.dial(WWW_DATA, "127.0.0.1") == "proxy"
        assert machine.dial(PROXY, "127.0.0.1") == "gateway"
    assert dial_from(40_003) in ("refused", "nobody")


# Other machines, and containers.


@pytest.mark.parametrize("address", [HOST_V4, HOST_V6])
def test_a_container_finds_the_port_closed(machine: Machine, address: str) -> None:
    with machine.redirected():
        assert machine.dial_from_container(address) == "refused"
    assert machine.dial_from_container(address) == "refused"


@pytest.mark.parametrize(("address", "other_family"), [(HOST_V4, HOST_V6), (HOST_V6, HOST_V4)])
def test_who_is_allowed_to_dial_from_elsewhere_gets_the_gateway(
    machine: Machine, address: str, other_family: str
) -> None:
    allowed = tuple(net for net in FROM_CONTAINER.allow_from if (net.version == 6) == (":" in address))
    with machine.redirected(FROM_CONTAINER._replace(allow_from=allowed)):
        assert machine.dial_from_container(address) == "gateway"
        assert machine.dial_from_container(other_family) == "refused"
        assert machine.dial(WWW_DATA, address) == "proxy"
    assert machine.dial_from_container(address) == "gateway"


def test_a_container_whose_connection_is_translated_does_not_get_past(machine: Machine) -> None:
    machine.host.nft(TRANSLATION_OF_ARRIVALS)
    assert machine.dial_from_container(HOST_V4, 81) == "gateway"
    with machine.redirected():
        assert machine.dial_from_container(HOST_V4, 81) in ("refused", "nobody")


@pytest.mark.parametrize("port", [GATEWAY_PORT, PROXY_PORT])
def test_loopback_addresses_are_shut_to_a_container_where_the_machine_routes_them(machine: Machine, port: int) -> None:
    """With `route_localnet`, which container engines set, they are addresses like any other (CVE-2020-8558)."""
    machine.host.sysctl("ipv4/conf/bridge0/route_localnet", 1)
    machine.container.sysctl("ipv4/conf/eth0/route_localnet", 1)
    machine.container.run("ip address del 127.0.0.1/8 dev lo")
    machine.container.run(f"ip route add 127.0.0.1 via {HOST_V4} src {CONTAINER_V4}")
    assert machine.dial_from_container("127.0.0.1", port) in ("gateway", "proxy")
    with machine.redirected():
        assert machine.dial_from_container("127.0.0.1", port) == "refused"
    assert machine.dial_from_container("127.0.0.1", port) == "refused"


# What is none of our business.


def test_the_same_port_of_another_machine_is_as_it_was(machine: Machine) -> None:
    machine.listen("container", ROOT, "0.0.0.0", GATEWAY_PORT, where=machine.container)
    machine.listen("container", ROOT, "::", GATEWAY_PORT, where=machine.container)
    machine.listen("container", ROOT, "0.0.0.0", PROXY_PORT, where=machine.container)
    with machine.redirected():
        assert machine.dial(WWW_DATA, CONTAINER_V4) == "container"
        assert machine.dial(WWW_DATA, CONTAINER_V6) == "container"
        assert machine.dial(WWW_DATA, CONTAINER_V4, PROXY_PORT) == "container"
        with machine.host.socket(WWW_DATA) as client:
            client.bind((HOST_V4, PROXY_PORT))
            assert machine.reached(client, CONTAINER_V4) == "container"
        with machine.host.socket(WWW_DATA) as client:
            client.setblocking(False)
            with suppress(BlockingIOError):
                client.sendto(b"hello", socket.MSG_FASTOPEN, (CONTAINER_V4, PROXY_PORT))
            assert select.select(machine.listeners["container"], [], [], SILENCE)[0], "Fast Open was hindered"


def test_a_connection_that_happens_to_come_from_the_gateways_number_gets_its_answers(machine: Machine) -> None:
    machine.hush("gateway")
    machine.listen("elsewhere", ROOT, CONTAINER_V4, 80, where=machine.container)
    with machine.redirected(), machine.host.socket(WWW_DATA) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("0.0.0.0", GATEWAY_PORT))
        assert machine.reached(client, CONTAINER_V4, 80) == "elsewhere"


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("half_open", [True, False])
def test_what_connection_tracking_remembers_of_others_does_not_keep_the_proxy_from_the_gateway(
    machine: Machine, way: Way, half_open: bool
) -> None:
    """The entry of one that was reset by the other end, or given up half open, leads the next from its address and port
    where it led. Any user can leave one for each port, without the proxy's knowing of him."""
    sources = {Way.ANONYMOUS: "127.0.0.1", Way.IDENTITY: "127.7.7.7"}
    settings = UpstreamSettings(("127.0.0.1", GATEWAY_PORT), GATEWAY, sources[Way.ANONYMOUS], sources[Way.IDENTITY])
    machine.host.sysctl("ipv4/ip_local_port_range", "50000 60000")  # where those that are half open come from
    with (
        machine.redirected(),
        opened_by_half(machine, "127.0.0.1", GATEWAY_PORT) if half_open else nullcontext(),
        machine.host.entered(),
        SockDiag() as sock_diag,
    ):
        machine.host.sysctl("ipv4/ip_local_port_range", "40000 40001")
        for port in (40_000, 40_001):
            with machine.host.socket(GAMES) as client:
                client.bind((sources[way], port))
                _leave_behind(machine, client, half_open)
        time.sleep(0.05)  # who comes within 4 ms of another's SYN can be refused for the likeness of sequence numbers
        with acting_as(PROXY):
            anyio.run(_connect, Upstream(settings, sock_diag), way)


async def _connect(upstream: Upstream, way: Way) -> None:
    async with await upstream.connect(way):
        pass


def _leave_behind(machine: Machine, client: socket.socket, half_open: bool) -> None:
    if half_open:
        deafen(client, "127.0.0.1")
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", GATEWAY_PORT))
        return
    client.connect(("127.0.0.1", GATEWAY_PORT))
    _, accepted = machine.accept()
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    accepted.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_what_the_proxy_sends_arrives_whole_when_it_closes_at_once(machine: Machine) -> None:
    """The last bytes leave after the socket has no owner any more."""
    with machine.redirected():
        for _ in range(3):
            with machine.connection(PROXY) as (client, accepted):
                sent = _send_without_a_reader(client)
                client.close()
                assert _received(accepted) == sent


def test_connections_of_the_proxy_outlive_the_holder_and_its_successor(machine: Machine) -> None:
    with machine.connection(PROXY) as (client, accepted):  # before there were any rules
        for _ in range(2):
            with machine.redirected(), machine.connection(PROXY) as (other, other_accepted):
                _echo(client, accepted)
                _echo(other, other_accepted)
            _echo(client, accepted)
        with machine.redirected():
            sent = _send_without_a_reader(client)
            client.close()
            assert _received(accepted) == sent


def _echo(client: socket.socket, accepted: socket.socket) -> None:
    for one, other in ((client, accepted), (accepted, client)):
        one.sendall(b"hello")
        assert other.recv(5, socket.MSG_WAITALL) == b"hello"


def _send_without_a_reader(client: socket.socket) -> int:
    """Fill all buffers, so that the kernel has much of it still to send; return how much it is."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_000_000)
    client.setblocking(False)
    sent = client.send(bytes(8_000_000))
    assert sent > 1_000_000
    return sent


def _received(connection: socket.socket) -> int:
    received = 0
    while piece := connection.recv(1_000_000):
        received += len(piece)
    return received


def test_what_the_proxy_has_left_behind_arrives_when_the_rules_come_only_then(machine: Machine) -> None:
    """Its first packet that connection tracking sees belongs to nobody any more, and is in the middle of a stream."""
    with machine.connection(PROXY) as (client, accepted):
        sent = _send_without_a_reader(client)
        client.close()
        with machine.redirected():
            time.sleep(0.7)  # the kernel asks by then whether there is room again
            assert _received(accepted) == sent


def test_a_reset_of_the_proxy_reaches_the_gateway(machine: Machine) -> None:
    with machine.redirected(), machine.connection(PROXY) as (client, accepted):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with pytest.raises(ConnectionResetError):
            accepted.recv(1)
