"""Who owns a TCP socket, asked about real ones."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from gatepass.daemon.cgroups import hierarchy_root
from gatepass_gateway.sock_diag import SockDiag, _cgroup
from support.gateway import acting_as

OWN = os.geteuid()


@pytest.fixture
def sock_diag() -> Iterator[SockDiag]:
    with SockDiag() as diag:
        yield diag


@contextmanager
def connected(
    family: socket.AddressFamily, host: str, server: str | None = None
) -> Iterator[tuple[socket.socket, ...]]:
    """Yield both ends of a connection: the client's and the accepted one."""
    with socket.socket(socket.AF_INET if server else family) as listener, socket.socket(family) as client:
        listener.bind((server or host, 0))
        listener.listen()
        client.connect((host, listener.getsockname()[1]))
        accepted, _ = listener.accept()
        with accepted:
            yield client, accepted


def uid_at_other_end(diag: SockDiag, accepted: socket.socket) -> int | None:
    found = diag.connected(accepted.getpeername()[:2], accepted.getsockname()[:2])
    return None if found is None else found.uid


def test_what_waits_for_a_listener_is_not_accepted(sock_diag: SockDiag) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        assert not sock_diag.is_accepted(listener.getsockname(), client.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            assert sock_diag.is_accepted(listener.getsockname(), client.getsockname())


@pytest.mark.parametrize(
    ("family", "host", "server"),
    [
        (socket.AF_INET, "127.0.0.1", None),
        (socket.AF_INET6, "::1", None),
        (socket.AF_INET6, "::ffff:127.0.0.1", "127.0.0.1"),
    ],
    ids=["v4", "v6", "v4-mapped"],
)
def test_the_owner_of_a_connection(
    sock_diag: SockDiag, family: socket.AddressFamily, host: str, server: str | None
) -> None:
    with connected(family, host, server) as (_, accepted):
        assert uid_at_other_end(sock_diag, accepted) == OWN


def test_a_connection_that_does_not_exist_has_no_owner_even_if_somebody_listens_there(sock_diag: SockDiag) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()

        assert sock_diag.connected(address, ("127.0.0.1", 9)) is None
        assert sock_diag.connected(("127.0.0.1", 9), address) is None


def test_a_client_that_has_closed_has_no_owner(sock_diag: SockDiag) -> None:
    with connected(socket.AF_INET, "127.0.0.1") as (client, accepted):
        client.close()
        assert uid_at_other_end(sock_diag, accepted) is None


def test_an_end_that_nobody_has_accepted_yet_has_no_owner(sock_diag: SockDiag) -> None:
    """It is established already, and the kernel says root."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        assert sock_diag.connected(listener.getsockname(), client.getsockname()) is None


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR])
def test_a_client_that_has_shut_down_has_no_owner(sock_diag: SockDiag, how: int) -> None:
    with connected(socket.AF_INET, "127.0.0.1") as (client, accepted):
        client.shutdown(how)
        assert uid_at_other_end(sock_diag, accepted) is None


def test_a_client_that_was_reset_has_no_owner(sock_diag: SockDiag) -> None:
    with connected(socket.AF_INET, "127.0.0.1") as (client, accepted):
        peer, here = accepted.getpeername(), accepted.getsockname()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        assert sock_diag.connected(peer, here) is None


def test_a_socket_in_the_hands_of_a_child_still_belongs_to_who_made_it(sock_diag: SockDiag) -> None:
    with connected(socket.AF_INET, "127.0.0.1") as (client, accepted):
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[client.fileno()],
        )  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
        client.close()
        assert uid_at_other_end(sock_diag, accepted) == OWN
        child.communicate()
        assert uid_at_other_end(sock_diag, accepted) is None


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="makes sockets of other users")
@pytest.mark.parametrize(("uid", "seen"), [(33, 33), (65_534, None)], ids=["another user", "the user of nobody"])
def test_the_owner_is_whoever_made_the_socket(sock_diag: SockDiag, uid: int, seen: int | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with acting_as(uid):
            client = socket.socket()
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with client, accepted:
            assert uid_at_other_end(sock_diag, accepted) == seen


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0", "::"])
def test_the_listener_that_takes_connections_is_found(sock_diag: SockDiag, bound: str) -> None:
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with socket.create_server((bound, 0), family=family, dualstack_ipv6=":" in bound) as listener:
        found = sock_diag.listener(("127.0.0.1", listener.getsockname()[1]))

        assert found is not None
        assert (found.uid, found.inode) == (OWN, os.fstat(listener.fileno()).st_ino)


def test_no_listener_is_none(sock_diag: SockDiag) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    assert sock_diag.listener(address) is None
    assert sock_diag.listener(("::1", address[1])) is None


def test_a_port_that_is_bound_again_has_another_cookie(sock_diag: SockDiag) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        first, again = sock_diag.listener(address), sock_diag.listener(address)
    with socket.create_server(address):
        second = sock_diag.listener(address)

    assert first == again
    assert first is not None
    assert second is not None
    assert first.cookie != second.cookie


@pytest.mark.parametrize("host", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_sockets_with_other_ends_are_not_looked_at(
    sock_diag: SockDiag, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """Any user can have as many as he has files, from one port to one port."""
    with (
        connected(socket.AF_INET6 if ":" in host else socket.AF_INET, host, "127.0.0.1") as (_, accepted),
        ExitStack() as held,
    ):
        for last in range(2, 20):
            other = held.enter_context(socket.socket())
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind((f"127.0.0.{last}", accepted.getpeername()[1]))
            other.setblocking(False)
            held.enter_context(socket.create_server((f"127.0.0.{last}", accepted.getsockname()[1])))
            other.connect_ex((f"127.0.0.{last}", accepted.getsockname()[1]))
        dump, looked_at = SockDiag._dump, []

        def noting_dump(*told: Any) -> Iterator[bytes]:
            for message in dump(*told):
                looked_at.append(message)
                yield message

        monkeypatch.setattr(SockDiag, "_dump", noting_dump)
        assert uid_at_other_end(sock_diag, accepted) == OWN
        assert len(looked_at) == 1


def test_many_questions_use_no_further_files(sock_diag: SockDiag) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for port in range(1, 2_000):
        sock_diag.connected(("127.0.0.1", port), ("127.0.0.1", 1))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user")
@pytest.mark.parametrize(
    ("host", "counts"), [("127.0.0.1", True), ("0.0.0.0", True), ("::", True), ("127.0.0.2", False), ("::1", False)]
)
def test_strangers_are_those_who_could_take_a_connection_to_the_address(host: str, counts: bool) -> None:
    with acting_as(33):
        stranger = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        stranger.bind((host, 0))
    port = stranger.getsockname()[1]
    with stranger, SockDiag() as sock_diag:
        assert sock_diag.strangers_on(("127.0.0.1", port), 0) == ({33} if counts else set())
        assert sock_diag.strangers_on(("127.0.0.1", port), 33) == set()
    with SockDiag() as sock_diag:
        assert sock_diag.strangers_on(("127.0.0.1", port), 0) == set()


def test_a_connection_is_described_with_the_cgroup_that_it_was_made_in(sock_diag: SockDiag) -> None:
    root = hierarchy_root(Path("/proc/self/mountinfo").read_text())
    if root is None:
        pytest.skip("needs cgroup v2")
    own = Path("/proc/self/cgroup").read_text().partition("0::/")[2].splitlines()[0]
    with connected(socket.AF_INET, "127.0.0.1") as (client, accepted):
        found = sock_diag.connected(accepted.getpeername(), accepted.getsockname())

        assert found is not None
        assert found.inode == os.fstat(client.fileno()).st_ino
        assert found.cgroup == Path(root, own).stat().st_ino


@pytest.mark.parametrize(
    ("attributes", "cgroup"),
    [
        (b"", None),
        (b"\x06\0\x05\0\x0a\x0b\0\0", None),
        (b"\x06\0\x05\0\x0a\x0b\0\0" + b"\x0c\0\x15\0" + (7).to_bytes(8, sys.byteorder), 7),
        (b"\x04\0\x16\0" + b"\x0c\0\x15\0" + (2**40).to_bytes(8, sys.byteorder), 2**40),
        (b"\0\0\0\0" * 3, None),
        (b"\x0c\0", None),
    ],
    ids=["none", "another", "after another", "after padding", "of no length", "cut off"],
)
def test_a_cgroup_that_the_kernel_does_not_tell_is_unknown(attributes: bytes, cgroup: int | None) -> None:
    assert _cgroup(attributes) == cgroup
