"""Live sessions of the real OpenClaw: listed, and ended by `gatepass revoke` or by the end of a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from e2e.accounts import as_account, run_as
from e2e.callers import bearer, http_request, log_in
from e2e.live_client import LiveClient, Tui
from e2e.openclaw_config import USER
from e2e.openclaw_instance import Account
from e2e.stack import Stack
from e2e.test_broker_down import ask, live_session

pytestmark = [pytest.mark.timeout(240), pytest.mark.root]


@contextmanager
def client_of(stack: Stack, account: Account, token: str | None = None, **options: Any) -> Iterator[LiveClient]:
    """Have a client of OpenClaw's, logged in by `account`."""
    token = stack.token(account) if token is None else token
    with LiveClient(stack.openclaw.install, account, stack.port, password=token, **options) as client:
        assert client.wait_for("hello", "close")["event"] == "hello"
        yield client


def sessions_of(stack: Stack, account: Account) -> list[dict[str, Any]]:
    """Return what `gatepass sessions` lists of a user."""
    done = stack.administer("sessions", "--json")
    assert done.returncode == 0, done.stderr
    return [session for session in json.loads(done.stdout)["sessions"] if session["uid"] == account.uid]


def identifier(stack: Stack, token: str) -> str:
    """Return a token's `jti`, as `gatepass verify` tells it."""
    done = stack.gatepass.run(
        stack.owner, "gatepass", "verify", "--json", env=stack.environment(), stdin=token, timeout=30
    )
    assert done.returncode == 0, done.stderr
    jti: str = json.loads(done.stdout)["claims"]["jti"]
    return jti


def test_a_live_session_is_listed_with_its_user_and_its_client(stack: Stack) -> None:
    token = stack.token()
    with client_of(stack, stack.owner, token):
        (session,) = sessions_of(stack, stack.owner)
        assert session["identity"] == USER
        assert session["jti"] == identifier(stack, token)
        assert (session["kind"], session["login"], session["client"]) == ("websocket", "token", "openclaw-tui")
    assert token not in stack.administer("sessions").stdout


@pytest.mark.parametrize("by", ["jti", "user", "identity", "all"])
def test_revoke_ends_a_live_session_and_its_token_before_it_returns(stack: Stack, by: str) -> None:
    token = stack.token()
    chosen = {"jti": [identifier(stack, token)], "user": [str(stack.owner.uid)], "identity": [USER], "all": []}[by]
    with client_of(stack, stack.owner, token) as client:
        assert client.is_alive()
        revoked = stack.administer("revoke", f"--{by}", *chosen, "--json")
        assert revoked.returncode == 0, revoked.stderr
        assert not sessions_of(stack, stack.owner)
        outcome = json.loads(revoked.stdout)
        assert (outcome["gateways"], outcome["acted"], outcome["waiting"]) == (1, 1, [])
        assert outcome["ended"] >= 1
        closed = client.wait_for("close")
        assert closed["code"] == 1008
        assert closed["reason"].startswith("gatepass: the token was revoked")
        # It tries once more with the same token by itself, as any client of OpenClaw's; then it stops.
        assert "revoked" in client.wait_for("error")["message"]
        assert client.wait_for("paused")["code"] == 1008
    login = run_as(stack.owner, partial(log_in, stack.port, {"password": token}))
    assert "revoked" in login.error["message"]
    answer = run_as(stack.owner, partial(http_request, stack.port, "GET", "/v1/models", [bearer(token)]))
    assert answer.status == 401
    done = stack.openclaw.cli("cron", "list")  # has a rule, so the next token is another one
    assert done.returncode == 0, done.stdout + done.stderr


def test_revoking_one_user_ends_no_other_users_and_no_remote_session(stack: Stack) -> None:
    with (
        client_of(stack, stack.owner) as owners,
        client_of(stack, stack.colleague) as colleagues,
        remote_session(stack) as remote,
    ):
        assert stack.administer("revoke", "--user", str(stack.owner.uid)).returncode == 0
        assert owners.wait_for("close")["code"] == 1008
        assert colleagues.is_alive()
        assert remote()


def test_revoking_one_token_ends_no_other_session_of_its_user(stack: Stack) -> None:
    one, other = stack.token(), stack.token()
    with client_of(stack, stack.owner, one) as ended, client_of(stack, stack.owner, other) as goes_on:
        assert stack.administer("revoke", "--jti", identifier(stack, one)).returncode == 0
        assert ended.wait_for("close")["code"] == 1008
        assert goes_on.is_alive()


def test_openclaws_own_terminal_says_that_its_token_was_revoked(stack: Stack) -> None:
    with stack.client_only() as instance, Tui(instance) as tui:
        tui.wait_for("gateway connected")
        assert stack.administer("revoke", "--user", str(stack.owner.uid)).returncode == 0
        tui.wait_for("gatepass: the token was revoked")


def test_a_token_of_a_process_ends_with_it_and_so_does_its_session(stack: Stack) -> None:
    with running_with_token(stack, "--bind", "process") as (process, token):
        with client_of(stack, stack.owner, token) as client:
            assert client.is_alive()
            process.kill()
            closed = client.wait_for("close")
            assert (closed["code"], closed["reason"][:9]) == (1008, "gatepass:")
            assert "process" in closed["reason"]
        login = run_as(stack.owner, partial(log_in, stack.port, {"password": token}))
        assert not login.ok
        assert "bound to" in login.error["message"]
        assert "has ended" in login.error["message"]
        answer = run_as(stack.owner, partial(http_request, stack.port, "GET", "/v1/models", [bearer(token)]))
        assert answer.status == 401


@contextmanager
def running_with_token(stack: Stack, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Have `gatepass run` run something; yield its process and the token."""
    command = ("sh", "-c", 'cat "$GATEPASS_TOKEN_FILE"; echo; exec sleep 60')
    process = subprocess.Popen(
        [stack.gatepass.bin / "gatepass", "run", *options, "--", *command],
        cwd="/",
        env=stack.environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **as_account(stack.owner),
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # what it runs too, which goes on where it was killed itself
        process.stdout.close()
        process.wait()


@contextmanager
def remote_session(stack: Stack) -> Iterator[Any]:
    """Log in as the same user from far away, through the reverse proxy; yield what tells whether it is served."""
    assert stack.reverse_proxy is not None
    headers = {stack.user_header: USER, "X-Forwarded-For": "203.0.113.7"}
    with live_session(stack.reverse_proxy, stack.port, None, headers) as session:
        yield partial(ask, session, "health")
