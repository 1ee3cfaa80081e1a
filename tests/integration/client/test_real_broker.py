"""Both clients, and both sources, against a broker in a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest

from gatepass.aio import AsyncClient, AsyncTokenSource
from gatepass.client import Client
from gatepass.errors import DeniedError, ErrorCode, TokenError
from gatepass.explanation import Explanation
from gatepass.frames import Message, encode_frame
from gatepass.sessions import Session, record_to_wire
from gatepass.source import Briefly, TokenSource
from support.broker import SCOPES, USER, BrokerProcess, RawClient, own_rule
from support.client import both_clients, call, run_cli
from support.hierarchy import own_hierarchy


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path_factory.mktemp("b")) as process:
        yield process


@both_clients
async def test_a_token_says_what_was_asked_for(kind: str, broker: BrokerProcess) -> None:
    issued = await call(kind, broker.socket, "issue", "openclaw", SCOPES[0], 60)
    assert (issued.subject, issued.audience, issued.scope, issued.expires_in) == (USER, "openclaw", SCOPES[0], 60)
    verified = await call(kind, broker.socket, "verify", issued.token)
    assert (verified.subject, verified.scope) == (USER, SCOPES[0])
    assert verified.claims["cnf"] == {"uid": os.geteuid()}


@both_clients
async def test_whoami_and_status(kind: str, broker: BrokerProcess) -> None:
    seen = await call(kind, broker.socket, "whoami")
    assert (seen.uid, seen.pid) == (os.geteuid(), os.getpid())
    assert seen.grant is not None
    assert seen.grant.identity == USER
    status = await call(kind, broker.socket, "status")
    assert status.state == "running"
    assert len(status.keys) == 1


@both_clients
async def test_a_denial_says_why(kind: str, broker: BrokerProcess) -> None:
    with pytest.raises(DeniedError, match="scope 'nope' is not granted"):
        await call(kind, broker.socket, "issue", None, "nope")


@both_clients
@pytest.mark.parametrize(
    ("token", "code"),
    [
        ("x", ErrorCode.TOKEN_MALFORMED),
        ("", ErrorCode.TOKEN_MALFORMED),
        ("a.b.c", ErrorCode.TOKEN_UNKNOWN_KEY),
        ("x" * 5_000, ErrorCode.TOKEN_MALFORMED),
        ("a\nb", ErrorCode.TOKEN_MALFORMED),
    ],
    ids=["x", "empty", "another key", "long", "newline"],
)
async def test_any_text_gets_an_answer_about_tokens(
    kind: str, broker: BrokerProcess, token: str, code: ErrorCode
) -> None:
    with pytest.raises(TokenError) as caught:
        await call(kind, broker.socket, "verify", token)
    assert caught.value.code is code


def test_threads_share_a_client(broker: BrokerProcess) -> None:
    with Client(str(broker.socket)) as client, ThreadPoolExecutor(20) as pool:
        tokens = list(pool.map(lambda _: client.issue().token, range(100)))
    assert len(set(tokens)) == 100


async def test_tasks_share_a_client(broker: BrokerProcess) -> None:
    tokens: set[str] = set()

    async def issue(client: AsyncClient) -> None:
        tokens.add((await client.issue()).token)

    async with AsyncClient(str(broker.socket)) as client, anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(issue, client)
    assert len(tokens) == 100


async def test_a_cancelled_call_leaves_the_client_usable(broker: BrokerProcess) -> None:
    async with AsyncClient(str(broker.socket)) as client:
        for microseconds in range(0, 2_000, 100):
            with anyio.move_on_after(microseconds / 1e6):
                await client.issue()
        assert (await client.whoami()).pid == os.getpid()


async def test_sources_give_tokens_that_the_broker_accepts(broker: BrokerProcess) -> None:
    source = TokenSource(Briefly(Client(str(broker.socket))), audience="openclaw")
    async with AsyncClient(str(broker.socket)) as client:
        await client.verify(await anyio.to_thread.run_sync(source.get))
        await client.verify(await AsyncTokenSource(client).get())


def test_a_source_alone_finds_the_broker(broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEPASS_SOCKET", str(broker.socket))
    assert TokenSource().get().count(".") == 2


def test_17_a_forked_child_is_seen_as_itself(broker: BrokerProcess) -> None:
    """The broker is told who connected, so a child must not write on its parent's connection."""
    code = (
        "import os, sys; from gatepass import Client; c = Client(sys.argv[1]); c.whoami(); child = os.fork();\n"
        "if not child: os._exit(0 if c.whoami().pid == os.getpid() else 1)\n"
        "status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]); sys.exit(status or c.whoami().pid != os.getpid())"
    )
    subprocess.run([sys.executable, "-c", code, str(broker.socket)], check=True)


async def test_a_restart_is_not_noticed(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path) as broker:
        broker.stop()
        subjects: list[str] = []

        async def issue(kind: str) -> None:
            subjects.append((await call(kind, broker.socket, "issue", patience=15)).subject)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(issue, "blocking")
            tasks.start_soon(issue, "async")
            await anyio.sleep(0.1)
            assert subjects == []
            await anyio.to_thread.run_sync(broker.start)
        assert subjects == [USER, USER]


def test_an_open_connection_survives_a_crash(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path) as broker, Client(str(broker.socket), 15) as client:
        client.issue()
        broker.kill()
        broker.start()
        assert client.issue().subject == USER


_DENIED_THE_SOCKET = """
import os, sys
from gatepass import Client, UnreachableError
os.setgroups([]); os.setgid(1); os.setuid(1)
try:
    Client(sys.argv[1]).issue()
except UnreachableError as error:
    print(error.code, error.message)
"""


@pytest.mark.root
def test_who_may_not_use_the_socket_is_told_which_group_may(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    shared = Path(tempfile.gettempdir())
    for directory in itertools.takewhile(lambda parent: parent != shared, (tmp_path, *tmp_path.parents)):
        directory.chmod(0o755)  # pytest makes them for one user
    sockets = [{"path": str(tmp_path / "broker.sock"), "mode": "0660", "group": "adm", "allow": ["request"]}]
    with BrokerProcess(tmp_path, sockets=sockets) as broker:
        command = [sys.executable, "-c", _DENIED_THE_SOCKET, str(broker.socket)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == (
        f"permission only the group 'adm' may use {broker.socket}: 'sudo usermod -aG adm daemon', then log in again\n"
    )


SESSION = Session("s1", "websocket", "token", USER, os.geteuid(), None, None, SCOPES[0], 1_700_000_000, "tui")


class Gateway:
    """Follows a broker, has one session, and carries out each change by ending that."""

    def __init__(self, broker: BrokerProcess) -> None:
        self._client = RawClient(broker.socket)
        self._client.ask(op="follow", name="main")
        self._client.ask(op="report", seq=0, opened=[record_to_wire(SESSION)])
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while (message := self._client.receive()) is not None:
            if "seq" in message:
                self._client.send(encode_frame(report(message["seq"])))

    def close(self) -> None:
        self._client.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._client.socket.close()


def report(seq: int) -> Message:
    return {"v": 1, "id": 7, "op": "report", "seq": seq, "closed": [SESSION.id]}


@pytest.fixture
def other_broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    """One that is changed by its test."""
    with BrokerProcess(tmp_path) as process:
        yield process


@pytest.fixture
def gateway(other_broker: BrokerProcess) -> Iterator[Gateway]:
    gateway = Gateway(other_broker)
    yield gateway
    gateway.close()


@both_clients
async def test_a_lock_ends_everything_until_it_is_opened(
    kind: str, other_broker: BrokerProcess, gateway: Gateway
) -> None:
    token = (await call(kind, other_broker.socket, "issue")).token
    found = await call(kind, other_broker.socket, "sessions")
    assert [(at.gateway, at.session) for at in found.sessions] == [("main", SESSION)]
    done = await call(kind, other_broker.socket, "lock")
    assert (done.gateways, done.acted, done.waiting, done.ended) == (1, 1, (), 1)
    assert (await call(kind, other_broker.socket, "status")).locked
    for method, arguments in (("issue", ()), ("verify", (token,))):
        with pytest.raises(DeniedError) as caught:
            await call(kind, other_broker.socket, method, *arguments)
        assert caught.value.code is ErrorCode.LOCKED
    assert (await call(kind, other_broker.socket, "unlock")).acted == 1
    assert (await call(kind, other_broker.socket, "verify", token)).subject == USER
    status = await call(kind, other_broker.socket, "status")
    assert (status.locked, status.gateways) == (False, 1)
    assert (await call(kind, other_broker.socket, "sessions")).sessions == ()


@both_clients
@pytest.mark.parametrize("by", ["jti", "uid", "identity", "all"])
async def test_what_is_revoked_is_accepted_no_more_and_what_comes_after_is(
    kind: str, broker: BrokerProcess, by: str
) -> None:
    token = (await call(kind, broker.socket, "issue")).token
    claims = (await call(kind, broker.socket, "verify", token)).claims
    value = {"jti": claims["jti"], "uid": str(os.geteuid()), "identity": USER, "all": ""}[by]
    done = await call(kind, broker.socket, "revoke", by, value)
    assert (done.gateways, done.waiting, done.ended) == (0, (), 0)
    with pytest.raises(TokenError) as caught:
        await call(kind, broker.socket, "verify", token)
    assert caught.value.code is ErrorCode.TOKEN_REVOKED
    await call(kind, broker.socket, "verify", (await call(kind, broker.socket, "issue")).token)


@pytest.mark.parametrize(
    ("by", "value"),
    [
        ("color", "red"),
        ("", ""),
        ("uid", "root"),
        ("uid", "01"),
        ("uid", "\u0661"),
        ("uid", ""),
        ("all", "x"),
        ("jti", ""),
    ],
)
async def test_a_revocation_that_can_choose_nothing_is_an_error_and_no_success(
    broker: BrokerProcess, by: str, value: str
) -> None:
    with pytest.raises(DeniedError, match="say what is to be revoked") as caught:
        await call("blocking", broker.socket, "revoke", by, value)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


@both_clients
async def test_nothing_is_left_behind_where_nobody_was(kind: str, broker: BrokerProcess) -> None:
    assert (await call(kind, broker.socket, "left_behind")).entries == ()


@both_clients
async def test_a_token_is_bound_as_it_was_asked_for(kind: str, broker: BrokerProcess) -> None:
    with own_hierarchy() as hierarchy, hierarchy.inside(hierarchy.make("UNIT")):
        token = (await call(kind, broker.socket, "issue", None, None, None, "unit")).token
        bound = (await call(kind, broker.socket, "verify", token)).claims["cnf"]
        assert bound == {"uid": os.geteuid(), "cgroup": (hierarchy.top / hierarchy.unit).stat().st_ino}


@both_clients
async def test_explain_and_its_cure_agree_with_issue(kind: str, broker: BrokerProcess) -> None:
    explained: Explanation = await call(kind, broker.socket, "explain", None, f"{SCOPES[0]} nope")
    assert (explained.decision.allowed, explained.decision.code) == (False, "denied")
    assert [(rule.rule, rule.matches) for rule in explained.rules] == [("own", True)]
    assert (explained.caller.uid, explained.caller.pid) == (os.geteuid(), os.getpid())
    cure = next(cure for cure in explained.cures if cure.arguments)
    issued = await call(kind, broker.socket, "issue", **cure.arguments)
    again: Explanation = await call(kind, broker.socket, "explain", **cure.arguments)
    assert (again.decision.allowed, again.decision.scope, again.cures) == (True, issued.scope, ())


@both_clients
async def test_explain_is_asked_about_processes_and_users(kind: str, broker: BrokerProcess) -> None:
    of_process: Explanation = await call(kind, broker.socket, "explain", pid=os.getppid())
    assert of_process.caller.pid == os.getppid()
    of_user: Explanation = await call(kind, broker.socket, "explain", uid=3_987_654_321, gid=7, groups=[8, 9])
    assert (of_user.caller.uid, of_user.caller.gid, of_user.caller.groups) == (3_987_654_321, 7, (8, 9))
    assert of_user.decision.allowed is False
    (rule,) = of_user.rules
    assert rule.failed is not None
    assert (rule.failed.selector, rule.failed.wanted) == ("uid", str(os.geteuid()))


def test_the_rule_that_explain_proposes_lets_the_caller_in(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path, rules=[own_rule(uid=54_321)]) as broker:
        asked = ("--scope", SCOPES[1])
        explained = run_cli("explain", *asked, "--json", socket=broker.socket)
        assert explained.returncode == 3
        assert run_cli("token", *asked, socket=broker.socket).returncode == 3
        toml = json.loads(explained.stdout)["cures"][0]["toml"]
        assert toml in run_cli("explain", *asked, socket=broker.socket).stdout
        broker.stop()
        broker.config.write_text(broker.config.read_text() + toml)
        broker.start()
        assert run_cli("explain", *asked, socket=broker.socket).returncode == 0
        assert run_cli("token", *asked, socket=broker.socket).returncode == 0


def test_an_administrator_sees_cuts_off_locks_and_opens(other_broker: BrokerProcess, gateway: Gateway) -> None:
    def said(*command: str) -> tuple[int, str]:
        done = run_cli(*command, socket=other_broker.socket)
        return done.returncode, done.stdout + done.stderr

    token = run_cli("token", socket=other_broker.socket).stdout
    assert f"{USER}  -" in said("sessions")[1]
    assert said("revoke", "--user", str(os.geteuid()))[1].startswith("revoked: 1 session ended at 1 gateway; ")
    assert said("sessions") == (0, "no session is open at 1 gateway (main)\n")
    assert run_cli("verify", socket=other_broker.socket, stdin=token).returncode == 19
    assert said("lock")[0] == 0
    assert said("token")[0] == 3
    assert said("explain")[0] == 3
    assert said("unlock") == (0, "unlocked: tokens are issued again, and accepted at 1 gateway\n")
    assert said("token", "--json")[0] == 0
