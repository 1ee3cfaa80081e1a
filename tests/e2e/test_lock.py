"""`gatepass lock` before the real OpenClaw: whoever logged in is out, whatever with; and what sessions left behind."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest

from e2e.accounts import run_as
from e2e.callers import bearer, http_request, log_in
from e2e.device import IOS_NODE, PairedDevice, RemoteDevice, pair, setup_code
from e2e.live_client import LiveClient, Tui
from e2e.openclaw_config import USER
from e2e.stack import Stack
from e2e.test_main_job import CRON_JOB
from e2e.test_sessions import client_of, remote_session

pytestmark = [pytest.mark.timeout(240), pytest.mark.root]

ADMIN_SCOPES = ["operator.admin", "operator.pairing", "operator.read", "operator.write"]


@pytest.fixture(autouse=True)
def unlocked_afterwards(stack: Stack) -> Iterator[None]:
    """Unlock in any case."""
    yield
    assert stack.administer("unlock").returncode == 0


@pytest.fixture(scope="module")
def device(stack: Stack) -> PairedDevice:
    """A device that a session of the owner's has paired for itself; its token makes an operator."""
    with administrator(stack) as session:
        return pair(stack, stack.owner, setup_code(stack, session))


def administrator(stack: Stack) -> AbstractContextManager[LiveClient]:
    """Have a session of the owner's that may pair devices."""
    return client_of(stack, stack.owner, scopes=ADMIN_SCOPES)


def lock(stack: Stack) -> None:
    """Lock, and see that the proxy has acted."""
    done = stack.administer("lock", "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["gateways"], outcome["acted"]) == (1, 1)


def left_behind(stack: Stack, kind: str) -> list[dict[str, Any]]:
    """Return what `gatepass sessions --left-behind` lists of a kind."""
    done = stack.administer("sessions", "--left-behind", "--json")
    assert done.returncode == 0, done.stderr
    return [entry for entry in json.loads(done.stdout)["left_behind"] if entry["kind"] == kind]


def test_lock_ends_what_is_local_and_unlock_lets_it_in_again(stack: Stack) -> None:
    token = stack.token()
    with client_of(stack, stack.owner, token) as client, remote_session(stack) as remote:
        lock(stack)
        closed = client.wait_for("close")
        assert closed["code"] == 1008
        assert closed["reason"].startswith("gatepass: an administrator has locked")
        assert remote()  # people far away come through the reverse proxy, which is their door
        _assert_locked(stack, token)
        assert stack.administer("unlock").returncode == 0
        assert client.wait_for("hello")  # it has gone on trying: nobody needs to start it again
    assert stack.openclaw.cli("cron", "list").returncode == 0


def test_the_lock_outlives_a_restart_of_the_broker_and_of_the_proxy(stack: Stack) -> None:
    token = stack.token()
    lock(stack)
    for restarted in (stack.broker, stack.proxy):
        restarted.stop()
        restarted.start()
        _assert_locked(stack, token)
    assert stack.administer("unlock").returncode == 0
    assert run_as(stack.owner, partial(log_in, stack.port, {"password": token})).ok


def test_openclaws_own_terminal_shows_the_lock_and_is_back_after_it(stack: Stack) -> None:
    with stack.client_only() as instance, Tui(instance) as tui:
        tui.wait_for("gateway connected")
        before = len(tui.shown)
        lock(stack)
        tui.wait_for("an administrator has locked gatepass", before)
        before = len(tui.shown)
        assert stack.administer("unlock").returncode == 0
        tui.wait_for("gateway reconnected", before)


def test_a_devices_token_logs_nobody_in_without_a_rule(stack: Stack, device: PairedDevice) -> None:
    with device.log_in(stack, stack.owner) as refused:
        assert "[device_logins]" in refused.wait_for("error")["message"]


def test_a_devices_token_counts_where_a_rule_says_so_but_not_under_lock(stack: Stack, device: PairedDevice) -> None:
    with device.log_in(stack, stack.colleague) as client:
        hello = client.wait_for("hello", "error")
        assert hello.get("auth", {}).get("method") == "device-token", hello
        assert client.is_alive()
        lock(stack)
        closed = client.wait_for("close")
        assert (closed["code"], closed["reason"][:9]) == (1008, "gatepass:")
        assert "locked" in client.wait_for("error")["message"]


def test_a_setup_code_from_before_the_lock_pairs_no_device_under_it(stack: Stack) -> None:
    """It would log in as a node, and OpenClaw would give that the token of an administrator besides."""
    with administrator(stack) as session:
        code = setup_code(stack, session)
    lock(stack)
    with LiveClient(
        stack.openclaw.install, stack.owner, stack.port, device="new", bootstrapToken=code, **IOS_NODE
    ) as node:
        refused = node.wait_for("hello", "error")
        assert "an administrator has locked gatepass" in refused.get("message", ""), refused


def test_revoking_a_user_ends_the_sessions_of_its_devices(stack: Stack, device: PairedDevice) -> None:
    with device.log_in(stack, stack.colleague) as client:
        assert client.wait_for("hello")
        assert stack.administer("revoke", "--user", str(stack.colleague.uid)).returncode == 0
        assert client.wait_for("close")["code"] == 1008


def test_a_devices_token_still_counts_at_the_port_of_openclaw_itself(stack: Stack, device: PairedDevice) -> None:
    """Which is what the redirect closes, and port-in-front does not: docs/threat-model.md says so."""
    lock(stack)
    with device.log_in(stack, stack.owner, stack.upstream_port) as client:
        assert client.wait_for("hello", "error")["event"] == "hello"


def test_a_cron_job_that_a_session_made_is_listed_and_the_command_removes_it(stack: Stack) -> None:
    added = stack.openclaw.cli("cron", "add", "--name", "left-behind", *CRON_JOB, "--json")
    assert added.returncode == 0, added.stdout + added.stderr
    job = json.loads(added.stdout)["id"]
    (entry,) = [entry for entry in left_behind(stack, "cron job") if entry["name"] == job]
    assert (entry["identity"], entry["uid"]) == (USER, stack.owner.uid)
    _remove(stack, entry["removal"])
    assert "left-behind" not in stack.openclaw.cli("cron", "list").stdout


def test_a_device_that_a_session_let_in_is_listed_and_the_command_removes_it(stack: Stack) -> None:
    assert stack.reverse_proxy is not None
    headers = {stack.user_header: USER, "X-Forwarded-For": "203.0.113.7"}
    remote = RemoteDevice()
    ask = partial(run_as, stack.reverse_proxy, remote.log_in, stack.port, headers)
    request = ask()["error"]["details"]["requestId"]
    with administrator(stack) as session:
        assert session.call("device.pair.approve", requestId=request)["ok"]
    assert ask()["ok"]
    lock(stack)  # what a session left behind is looked for when something is wrong
    (entry,) = [entry for entry in left_behind(stack, "device") if entry["name"] == remote.id]
    assert (entry["identity"], entry["uid"]) == (USER, stack.owner.uid)
    assert stack.administer("unlock").returncode == 0
    _remove(stack, entry["removal"])
    assert ask()["error"]["details"]["code"] == "PAIRING_REQUIRED"


def test_a_setup_code_is_listed(stack: Stack, device: PairedDevice) -> None:
    assert left_behind(stack, "setup code")


def _assert_locked(stack: Stack, token: str) -> None:
    """Nothing is issued, and a token from before the lock logs nobody in."""
    asked = stack.gatepass.run(stack.owner, "gatepass", "token", env=stack.environment())
    assert asked.returncode == 3
    assert "gatepass unlock" in asked.stderr
    listed = stack.openclaw.cli("cron", "list")
    assert listed.returncode != 0
    assert "gatepass unlock" in listed.stdout + listed.stderr
    login = run_as(stack.owner, partial(log_in, stack.port, {"password": token}))
    assert "gatepass unlock" in login.error["message"]
    answer = run_as(stack.owner, partial(http_request, stack.port, "GET", "/v1/models", [bearer(token)]))
    assert answer.status in (401, 403)


def _remove(stack: Stack, command: str) -> None:
    openclaw, *arguments = shlex.split(command)
    assert openclaw == "openclaw"
    done = stack.openclaw.cli(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
