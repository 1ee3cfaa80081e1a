"""A machine of its own in network namespaces: a host with a gateway and a proxy, and a container on its bridge.

A socket belongs to the namespace and the user of the moment in which it was opened, so a test opens sockets as whomever
it needs and uses them all from one process.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Self

from gatepass.daemon.addresses import REDIRECTED_TO
from gatepass.errors import GatepassError
from gatepass_gateway.redirect.nft import Nft
from gatepass_gateway.redirect.rules import MARK, RedirectSettings
from gatepass_gateway.redirect.tables import Tables
from support.gateway import acting_as

GATEWAY_PORT = 18_789
PROXY_PORT = 789
PROXY = 64_901
GATEWAY = 64_902
ROOT, GAMES, WWW_DATA = 0, 5, 33
SECONDS = 10.0
BACKLOG = 100
SILENCE = 0.3
"""Seconds after which a connection counts as one that never completes; here it takes less than a millisecond."""

HOST_V4, CONTAINER_V4 = "10.9.0.1", "10.9.0.2"
HOST_V6, CONTAINER_V6 = "fd09::1", "fd09::2"
SETTINGS = RedirectSettings(GATEWAY_PORT, PROXY_PORT, PROXY)
FROM_CONTAINER = SETTINGS._replace(allow_from=(ip_network(f"{CONTAINER_V4}/32"), ip_network("fd09::/64")))

_CLONE_NEWNET = 0x40000000
SO_MARK, IP_MINTTL, IPV6_MINHOPCOUNT = 36, 21, 73

Socket = socket.socket


def skip_reason() -> str | None:
    """Return why namespaces with rules of their own cannot be had here."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces and other users"
    if not all(map(shutil.which, ("nft", "ip"))):
        return "needs nft and ip (apt-get install nftables iproute2)"
    try:
        with NetworkNamespace() as namespace, namespace.entered(), Nft() as nft:
            nft.run("list ruleset")
    except (OSError, GatepassError) as error:
        return f"no network namespace with nftables can be had here: {error}"
    return None


class NetworkNamespace:
    """Lives as long as this, or a socket in it. A context manager."""

    def __init__(self) -> None:
        with _own_namespace() as (libc, _):
            if libc.unshare(_CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            self.descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread, and what it starts, in the namespace."""
        with _own_namespace() as (libc, _):
            _enter(libc, self.descriptor)
            yield

    def run(self, command: str) -> str:
        """Run a command of the system and return its output."""
        with self.entered():
            done = subprocess.run(command.split(), check=False, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def nft(self, commands: str) -> str:
        """Run nft as another program of root's would."""
        with self.entered():
            done = subprocess.run(
                ["nft", "-f", "-"], input=commands, check=False, capture_output=True, text=True, timeout=SECONDS
            )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def sysctl(self, name: str, value: str | int) -> None:
        with self.entered():
            Path("/proc/sys/net", name).write_text(str(value))

    def socket(
        self, uid: int = ROOT, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
    ) -> Socket:
        """Open a socket as a user."""
        with self.entered(), acting_as(uid):
            return Socket(family, kind, protocol)

    def listener(self, uid: int, address: str, port: int) -> Socket:
        """Listen as a user, who may take any port here."""
        listener = self.socket(uid, socket.AF_INET6 if ":" in address else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in address:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
        return listener


class Machine:
    """A host, where a gateway listens on every address and a proxy on loopback, and a container. A context manager."""

    def __init__(self) -> None:
        with ExitStack() as parts:
            self.host = parts.enter_context(NetworkNamespace())
            self.container = parts.enter_context(NetworkNamespace())
            self._connect()
            self.listeners: dict[str, list[socket.socket]] = {}
            self._parts = parts.pop_all()
        self.listen("gateway", GATEWAY, "0.0.0.0", GATEWAY_PORT)
        self.listen("gateway", GATEWAY, "::", GATEWAY_PORT)
        # As systemd does for its socket units.
        for address in REDIRECTED_TO:
            self.listen("proxy", ROOT, address, PROXY_PORT, mark=MARK)
        # Without rules every way is open; only then does it say something that one is shut.
        for address in (HOST_V4, HOST_V6):
            eventually(partial(self._is_open, address))

    def listen(
        self, name: str, uid: int, address: str, port: int, *, where: NetworkNamespace | None = None, mark: int = 0
    ) -> None:
        listener = self._parts.enter_context((where or self.host).listener(uid, address, port))
        listener.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        self.listeners.setdefault(name, []).append(listener)

    def hush(self, name: str) -> None:
        """Stop listening."""
        for listener in self.listeners.pop(name):
            listener.close()

    @contextmanager
    def redirected(self, settings: RedirectSettings = SETTINGS) -> Iterator[Tables]:
        """Hold the tables in this process."""
        with self.host.entered():
            tables = Tables(settings)
        with tables:
            yield tables

    def dial(self, uid: int, address: str, port: int = GATEWAY_PORT) -> str:
        """Return who takes a connection of a local user, 'refused', or 'nobody' after a while."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.host.socket(uid, family) as client:
            return self.reached(client, address, port)

    def dial_from_container(self, address: str, port: int = GATEWAY_PORT) -> str:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.container.socket(ROOT, family) as client:
            return self.reached(client, address, port)

    def reached(self, client: socket.socket, address: str, port: int = GATEWAY_PORT) -> str:
        """Connect `client` and return who has taken the connection, 'refused', or 'nobody' after a while."""
        client.settimeout(SILENCE)
        try:
            with self.host.entered():  # where the scope of an address is looked up
                client.connect((address, port))
        except TimeoutError:
            return "nobody"
        except ConnectionRefusedError:
            return "refused"
        taken_by, accepted = self.accept()
        accepted.close()
        return taken_by

    def accept(self) -> tuple[str, socket.socket]:
        """Return the connection that somebody listening has got, and who."""
        names = {listener: name for name, listeners in self.listeners.items() for listener in listeners}
        readable, _, _ = select.select(list(names), [], [], SECONDS)
        assert readable, "connected, and to nobody that the test knows"
        accepted, _ = readable[0].accept()
        accepted.setblocking(True)
        return names[readable[0]], accepted

    @contextmanager
    def connection(self, uid: int) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Yield both ends of a connection to the gateway's port: the user's, and that of whoever has taken it."""
        with self.host.socket(uid) as client:
            client.settimeout(SECONDS)
            client.connect(("127.0.0.1", GATEWAY_PORT))
            _, accepted = self.accept()
            with accepted:
                accepted.settimeout(SECONDS)
                yield client, accepted

    def _is_open(self, address: str) -> bool:
        return self.dial_from_container(address) == "gateway"

    def close(self) -> None:
        self._parts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> None:
        for namespace in (self.host, self.container):
            namespace.run("ip link set lo up")
            namespace.sysctl("ipv4/ip_unprivileged_port_start", 0)
        host, container = self.host, self.container
        host.run("ip link add bridge0 type bridge")
        host.run(f"ip link add port0 type veth peer name eth0 netns /proc/{os.getpid()}/fd/{container.descriptor}")
        host.run("ip link set port0 master bridge0 up")
        for namespace, device, v4, v6 in (
            (host, "bridge0", HOST_V4, HOST_V6),
            (container, "eth0", CONTAINER_V4, CONTAINER_V6),
        ):
            namespace.run(f"ip address add {v4}/24 dev {device}")
            namespace.run(f"ip address add {v6}/64 dev {device} nodad")
            namespace.run(f"ip link set {device} addrgenmode none up")
        container.run(f"ip route add default via {HOST_V4}")


def deafen(client: socket.socket, address: str) -> None:
    """Have nothing arrive from `address` any more, not even a reset: it would have to come from nearer than it can.

    Any user may ask for that.
    """
    if "." in address:
        client.setsockopt(socket.IPPROTO_IP, IP_MINTTL, 255)
    else:
        client.setsockopt(socket.IPPROTO_IPV6, IPV6_MINHOPCOUNT, 255)


@contextmanager
def opened_by_half(machine: Machine, address: str, port: int) -> Iterator[None]:
    """Have more connections half open than a listener has places for: the kernel answers with SYN cookies then."""
    with ExitStack() as held:
        for _ in range(2 * BACKLOG):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            client = held.enter_context(machine.host.socket(WWW_DATA, family))
            deafen(client, address)
            client.setblocking(False)
            client.connect_ex((address, port))
        yield


def eventually(condition: Callable[[], object]) -> None:
    """Wait until `condition()` is true."""
    limit = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < limit, "this never became true"
        time.sleep(0.01)


@contextmanager
def _own_namespace() -> Iterator[tuple[ctypes.CDLL, int]]:
    """Be back in this namespace at the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield libc, own
    finally:
        _enter(libc, own)
        os.close(own)


def _enter(libc: ctypes.CDLL, descriptor: int) -> None:
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
