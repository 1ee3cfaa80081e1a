"""Both clients, and both sources, against a broker in a process of its own."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest

from gatepass.aio import AsyncClient, AsyncTokenSource
from gatepass.client import Client
from gatepass.errors import DeniedError, ErrorCode, TokenError
from gatepass.source import Briefly, TokenSource
from support.broker import SCOPES, USER, BrokerProcess
from support.client import both_clients, call


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
