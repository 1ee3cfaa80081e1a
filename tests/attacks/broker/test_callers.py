"""Attacks 6 and 14 to 22 (docs/threat-model.md): who is on the other end."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from gatepass.frames import encode_frame
from gatepass_broker import peer as peer_module
from gatepass_broker.peer import SO_PEERGROUPS, SO_PEERPIDFD, Peer, SocketOptions, overflow_gid, overflow_uid
from gatepass_broker.pidfd import boottime
from gatepass_broker.places import Places
from support.broker import BrokerProcess, RawClient, acting_as, ask, error_code, in_thread, own_rule, running_broker

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be other users")


def attest(connection: SocketOptions, absent_at: int | None = None) -> Peer:
    return peer_module.attest(connection, Places.of_this_machine(), absent_at)


class FakeSocket:
    """Answers getsockopt as a kernel would to a peer of one's choice."""

    def __init__(self, pid: int = 1, uid: int = 1000, gid: int = 1000, groups: tuple[int, ...] = ()) -> None:
        self.options: dict[int, bytes | OSError] = {
            socket.SO_PEERCRED: struct.pack("iII", pid, uid, gid),
            SO_PEERGROUPS: struct.pack(f"{len(groups)}I", *groups),
            SO_PEERPIDFD: OSError(errno.ENOPROTOOPT, ""),
        }

    def fileno(self) -> int:
        return -1

    def getsockopt(self, level: int, name: int, size: int, /) -> bytes:
        value = self.options[name]
        if isinstance(value, OSError):
            raise value
        return value


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that other users can reach, as pytest's are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_this_process_as_the_kernel_sees_it() -> None:
    near, far = socket.socketpair()
    with near, far:
        peer = attest(near)
        caller = peer.caller
        assert (caller.uid, caller.gid, caller.pid) == (os.geteuid(), os.getegid(), os.getpid())
        assert caller.groups == frozenset(os.getgroups())
        assert not peer.has_exited()
        peer.close()


async def test_06_a_client_bound_to_a_path_that_looks_like_credentials(tmp_path: Path) -> None:
    async with running_broker(tmp_path, rules=[own_rule(uid=4711)]) as broker:

        def talk() -> str:
            with socket.socket(socket.AF_UNIX) as client:
                client.bind(str(tmp_path / ";uid=4711;"))
                client.connect(str(broker.socket))
                client.sendall(encode_frame({"v": 1, "id": 1, "op": "whoami"}))
                return repr(client.recv(65_536))

        assert "4711" not in await in_thread(talk)


async def test_14_a_caller_that_has_exited_gets_nothing(tmp_path: Path) -> None:
    """The process hands its connection to us and ends; the credentials on the socket stay those of the dead."""
    script = (
        "import socket, sys; c = socket.socket(socket.AF_UNIX); c.connect(sys.argv[1]);"
        "socket.send_fds(socket.socket(fileno=int(sys.argv[2])), [b'x'], [c.fileno()])"
    )
    async with running_broker(tmp_path) as broker:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = [sys.executable, "-c", script, str(broker.socket), str(theirs.fileno())]
            await anyio.run_process(command, pass_fds=[theirs.fileno()])
            _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
        with socket.socket(fileno=descriptor) as passed_on:
            passed_on.settimeout(5)
            passed_on.sendall(encode_frame({"v": 1, "id": 1, "op": "issue"}))
            reply = await in_thread(lambda: passed_on.recv(65_536))

    assert b"has exited" in reply
    assert b"token" not in reply


def test_14_a_caller_that_exits_during_the_check_is_not_alive() -> None:
    fake = FakeSocket()
    fake.options[SO_PEERPIDFD] = OSError(errno.ESRCH, "")

    assert attest(fake).has_exited()


@pytest.mark.parametrize("option", [socket.SO_PEERCRED, SO_PEERGROUPS, SO_PEERPIDFD])
def test_14_what_the_kernel_does_not_tell_is_an_error_and_no_default(option: int) -> None:
    fake = FakeSocket()
    fake.options[option] = OSError(errno.EPERM, "")

    with pytest.raises(PermissionError):
        attest(fake)


async def test_14_a_connection_that_cannot_be_attested_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr("gatepass_broker.connection.attest", refuse)
    async with running_broker(tmp_path) as broker:
        with RawClient(broker.socket) as client:
            client.send(encode_frame({"v": 1, "id": 1, "op": "issue"}))
            assert await in_thread(client.is_closed)
        assert len(broker.server.house.registry) == 0


@pytest.mark.parametrize("comes_with_pidfd", [False, True])
def test_15_of_pid_0_only_the_user_is_known(comes_with_pidfd: bool) -> None:
    fake = FakeSocket(pid=0)
    if comes_with_pidfd:
        fake.options[SO_PEERPIDFD] = struct.pack("i", os.pidfd_open(os.getpid()))
    peer = attest(fake, boottime())
    assert peer.caller == (1000, 1000, frozenset(), None, None, None, None, False)
    peer.close()


def test_16_the_overflow_ids_are_unknown() -> None:
    caller = attest(FakeSocket(uid=overflow_uid(), gid=overflow_gid(), groups=(27, overflow_gid()))).caller

    assert (caller.uid, caller.gid, caller.groups) == (None, None, frozenset({27}))


@needs_root
@pytest.mark.root
async def test_16_nobody_gets_no_token_whatever_the_rules_say(shared: Path) -> None:
    socket_entry = {"path": str(shared / "b.sock"), "mode": "0666"}
    async with running_broker(shared, rules=[own_rule(uid=[0, 1], gid=1000)], sockets=[socket_entry]) as broker:
        with acting_as(overflow_uid(), 1000):
            client = RawClient(broker.socket)
        with client:
            reply = await in_thread(lambda: client.ask(op="issue"))
            assert error_code(reply) == "denied"
            assert (await in_thread(lambda: client.ask(op="whoami")))["caller"]["uid"] is None


@needs_root
@pytest.mark.root
async def test_17_credentials_are_those_of_the_connect(shared: Path) -> None:
    """Connected as uid 4711, used by root: it is uid 4711's connection, and the other way round."""
    rules = [{"uid": 4711, "scopes": [], "identity": "low"}, {"uid": 0, "scopes": [], "identity": "root"}]
    sockets = [{"path": str(shared / "b.sock"), "mode": "0666"}]
    async with running_broker(shared, rules=rules, sockets=sockets) as broker:
        with acting_as(4711, 4711):
            client = RawClient(broker.socket)
        with client:
            assert (await in_thread(lambda: client.ask(op="issue")))["subject"] == "low"
        with RawClient(broker.socket) as client:
            with acting_as(4711, 4711):
                client.send(encode_frame({"v": 1, "id": 1, "op": "issue"}))
            reply = await in_thread(client.receive)
            assert reply["subject"] == "root"


@needs_root
@pytest.mark.root
async def test_groups_are_those_of_the_connect(shared: Path) -> None:
    rules = [{"gid": 5_000, "scopes": []}]
    sockets = [{"path": str(shared / "b.sock"), "mode": "0666"}]
    async with running_broker(shared, rules=rules, sockets=sockets) as broker:
        for groups, granted in [((), False), ((4_999, 5_000), True), (tuple(range(4_000, 5_001)), True)]:
            with acting_as(4711, 4711, groups):
                client = RawClient(broker.socket)
            with client:
                assert (await in_thread(lambda: client.ask(op="issue")))["ok"] is granted, len(groups)  # noqa: B023


@needs_root
@pytest.mark.root
async def test_a_token_shown_by_another_user_is_not_verified(shared: Path) -> None:
    rules = [{"uid": [0, 4711], "scopes": []}]
    sockets = [{"path": str(shared / "b.sock"), "mode": "0666"}]
    async with running_broker(shared, rules=rules, sockets=sockets) as broker:
        token = (await broker.ask(op="issue"))["token"]
        with acting_as(4711, 4711):
            client = RawClient(broker.socket)
        with client:
            assert error_code(await in_thread(lambda: client.ask(op="verify", token=token))) == "token_wrong_uid"


@pytest.mark.parametrize("step", ["peer.pidfs_inode", "places.pidfds.cgroup_id", "places.pidfds.cgroup_path"])
def test_20_no_descriptor_is_left_by_a_failed_check(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EPERM, "")

    near, far = socket.socketpair()
    with near, far:
        attest(near).close()
        monkeypatch.setattr(f"gatepass_broker.{step}", refuse)
        before = open_descriptors()
        for _ in range(10):
            with pytest.raises(PermissionError):
                attest(near)
        assert open_descriptors() == before


@pytest.mark.parametrize("absent_for", [None, 0, 60 * 10**9])
def test_20_no_descriptor_is_left_where_pidfds_do_not_come_with_connections(absent_for: int | None) -> None:
    fake = FakeSocket(pid=os.getpid())
    before = open_descriptors()
    for pid in (os.getpid(), 2**22 + 1):
        fake.options[socket.SO_PEERCRED] = struct.pack("iII", pid, 1000, 1000)
        attest(fake, None if absent_for is None else boottime() - absent_for).close()
    assert open_descriptors() == before


def test_13_a_pid_alone_is_no_process() -> None:
    """Without a moment before the connection, or where the process began after it, nothing is told but the user."""
    fake = FakeSocket(pid=os.getpid())
    for absent_at in (None, 0):
        peer = attest(fake, absent_at)
        caller = peer.caller
        assert (caller.uid, caller.pid) == (1000, os.getpid())
        assert (caller.process, caller.cgroup, caller.nested, caller.unsettled) == (None, None, None, True)
        assert not peer.has_exited()


async def test_20_no_descriptor_is_left_by_connections(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as broker:
        await broker.ask(op="issue")
        await anyio.sleep(0.05)
        before = open_descriptors()
        for _ in range(20):
            await broker.ask(op="issue")
        for _ in range(20):
            RawClient(broker.socket).__exit__()
        with anyio.fail_after(5):
            while open_descriptors() > before:  # noqa: ASYNC110
                await anyio.sleep(0.01)


async def test_22_no_user_or_group_is_looked_up_in_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: object) -> None:
        raise AssertionError("a look-up in a request")

    async with running_broker(tmp_path) as broker:
        for name in ("pwd.getpwuid", "pwd.getpwnam", "grp.getgrgid", "grp.getgrnam", "os.getgrouplist"):
            monkeypatch.setattr(name, slow)
        assert (await broker.ask(op="issue"))["ok"]
        assert (await broker.ask(op="whoami"))["ok"]


@needs_root
@pytest.mark.root
def test_16_a_caller_outside_of_the_brokers_user_namespace(shared: Path) -> None:
    """A broker as with systemd's PrivateUsers=yes: the kernel shows it others as the overflow uid, who get nothing."""
    namespace = ["unshare", "--user", "--map-root-user"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this kernel makes no user namespaces")
    sockets = [{"path": str(shared / "b.sock"), "mode": "0666"}]
    with BrokerProcess(shared, prefix=namespace, rules=[own_rule(uid=[0, 4711])], sockets=sockets) as broker:
        assert ask(broker.socket, op="issue")["ok"]
        with acting_as(4711, 4711):
            client = RawClient(broker.socket)
        with client:
            assert client.ask(op="whoami")["caller"]["uid"] is None
            assert error_code(client.ask(op="issue")) == "denied"
