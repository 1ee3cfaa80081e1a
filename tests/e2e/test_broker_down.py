"""With the broker stopped: what runs goes on, what is new fails clearly, and nothing hangs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection

import pytest

from e2e.accounts import become, run_as
from e2e.callers import bearer, call, connect_params, http_request, open_websocket
from e2e.openclaw_instance import Account
from e2e.stack import Stack

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def broker_stopped(stack: Stack) -> Iterator[None]:
    """Stop the broker for one test."""
    stack.broker.stop()
    yield
    stack.broker.start()
    assert stack.openclaw.cli("cron", "list").returncode == 0  # all is well again, with nothing else restarted


def test_a_live_session_goes_on_and_a_token_in_hand_still_counts(stack: Stack) -> None:
    token = stack.token()
    with live_session(stack.owner, stack.port, token) as session:
        assert ask(session, "health")
        stack.broker.stop()
        try:
            assert ask(session, "health")
            request = partial(http_request, stack.port, "GET", "/v1/models", [bearer(token)])
            assert run_as(stack.owner, request).status == 200
        finally:
            stack.broker.start()
        assert ask(session, "health")
    assert run_as(stack.owner, request).status == 200  # also after the restart: the old key stays published


def test_a_new_login_fails_at_once_and_says_what_to_do(stack: Stack, broker_stopped: None) -> None:
    for command in (["cron", "list"], ["health"], ["gateway", "call", "status"]):
        started = time.monotonic()
        done = stack.openclaw.cli(*command)
        assert done.returncode != 0
        assert "the gatepass broker was not running: start it" in done.stdout + done.stderr
        assert time.monotonic() - started < 20


def test_openclaw_reloads_its_configuration(stack: Stack, broker_stopped: None) -> None:
    config, offset = stack.openclaw_config(), len(stack.openclaw.log_text())
    config["gateway"]["auth"]["identityScopes"]["new@example.com"] = ["operator.read"]
    stack.openclaw.write_config(config)
    stack.openclaw.wait_for_log("config change applied|config hot reload applied", 30, offset)
    stack.openclaw.write_config(stack.openclaw_config())


def test_openclaw_starts(stack: Stack, broker_stopped: None) -> None:
    stack.openclaw.stop()
    stack.openclaw.start()


@contextmanager
def live_session(
    account: Account, port: int, token: str | None, headers: Mapping[str, str] | None = None
) -> Iterator[Connection]:
    """Log `account` in and keep it logged in; the connection takes method names and gives whether they succeeded."""
    ours, theirs = get_context("fork").Pipe()
    process = get_context("fork").Process(target=_keep_session, args=(account, port, token, headers, theirs))
    process.start()
    theirs.close()
    try:
        assert ours.poll(30)
        assert ours.recv() == "logged in"
        yield ours
    finally:
        ours.close()
        process.join(10)
        process.kill()


def ask(session: Connection, method: str) -> bool:
    """Call a method in a live session."""
    session.send(method)
    assert session.poll(30), f"no answer to {method}"
    succeeded: bool = session.recv()
    return succeeded


def _keep_session(
    account: Account, port: int, token: str | None, headers: Mapping[str, str] | None, pipe: Connection
) -> None:
    become(account)
    auth = None if token is None else {"password": token}
    with open_websocket(port, headers=headers) as websocket:
        websocket.recv()
        assert call(websocket, "connect", connect_params(auth))["ok"]
        pipe.send("logged in")
        try:
            while True:
                pipe.send(call(websocket, pipe.recv(), {})["ok"])
        except EOFError:
            return
