"""A long-lived client is started once: it outlives restarts, and the life of the token that it began with."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from e2e.accounts import run_as
from e2e.callers import Login, bearer, http_request, log_in
from e2e.later_time import LaterTime
from e2e.live_client import Tui
from e2e.openclaw_install import OpenClawInstall
from e2e.openclaw_instance import OpenClawInstance
from e2e.stack import GatepassInstall, Stack
from support.cgroups import Slice, test_slice

pytestmark = [pytest.mark.timeout(300), pytest.mark.root]

SECONDS = 40.0


@pytest.fixture(scope="module")
def own_stack(gatepass_install: GatepassInstall, openclaw_install: OpenClawInstall) -> Iterator[Stack]:
    """A chain of its own: where the clock was ahead, nothing that went on from there would do for other tests."""
    with Stack(gatepass_install, openclaw_install) as running:
        yield running


@pytest.fixture
def slice_of_its_own() -> Iterator[Slice]:
    """A place for cgroups beside that of the tests."""
    made: Slice = test_slice()
    yield made
    made.remove()


def test_openclaws_terminal_outlives_restarts_and_its_token_and_no_copy_of_that_does(
    own_stack: Stack, slice_of_its_own: Slice
) -> None:
    stack = own_stack
    with stack.client_only() as instance, Tui(instance) as tui:
        tui.wait_for("gateway connected")
        token, unused = _only_answer(instance), stack.token()
        _restart(stack)
        with LaterTime(3600) as later:
            _restart(stack, later)
            (session,) = _sessions(stack)
            assert (session["login"], session["client"]) == ("reconnect", "openclaw-tui")
            assert tui.running

            assert "has expired" in _log_in(stack, unused).error["message"]
            assert not run_as(stack.colleague, partial(log_in, stack.port, {"password": token})).ok
            with slice_of_its_own.inside(slice_of_its_own.make("other.scope")):
                assert not _log_in(stack, token).ok
            request = partial(http_request, stack.port, "GET", "/v1/models", [bearer(token)])
            assert run_as(stack.owner, request).status == 401  # no client that stays connected comes so

            assert stack.administer("revoke", "--user", str(stack.owner.uid)).returncode == 0
            tui.wait_for("gatepass: the token was revoked")
            assert not _sessions(stack)
            assert not _log_in(stack, token).ok
        assert _only_answer(instance) == token  # it was started once, and has asked once


def _restart(stack: Stack, at: LaterTime | None = None) -> None:
    """Restart the broker, then the proxy, and wait until the one client that there is has logged in again."""
    stack.broker.stop()
    stack.broker.start(at)
    stack.proxy.stop()
    offset = len(stack.proxy.log.read_text())
    stack.proxy.start(at)
    deadline = time.monotonic() + SECONDS
    while "event=login " not in stack.proxy.log.read_text()[offset:] or not _sessions(stack):
        assert time.monotonic() < deadline, stack.proxy.log.read_text()[offset:]
        time.sleep(0.1)


def _sessions(stack: Stack) -> list[dict[str, Any]]:
    done = stack.administer("sessions", "--json")
    assert done.returncode == 0, done.stderr
    sessions: list[dict[str, Any]] = json.loads(done.stdout)["sessions"]
    return sessions


def _only_answer(instance: OpenClawInstance) -> str:
    """Return the token that OpenClaw was given, the only time that it asked for one."""
    (answer,) = (instance.home / "answers.log").read_text().splitlines()
    token: str = json.loads(answer)["values"]["gateway/password"]
    return token


def _log_in(stack: Stack, token: str) -> Login:
    return run_as(stack.owner, partial(log_in, stack.port, {"password": token}))
