"""What gets nothing from an OpenClaw behind gatepass, and the reason that it gets instead."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from e2e.accounts import become, run_as
from e2e.callers import Answer, Login, bearer, http_request, log_in, open_websocket
from e2e.openclaw_config import IDENTITY_SOURCE, USER
from e2e.stack import Stack

pytestmark = pytest.mark.timeout(240)

INVOKE = {"tool": "sessions_list", "args": {}}

SPELLINGS = (
    "{name}",
    "{upper}",
    "{title}",
    "{underscored}",
    "{name}.",
    "{name}\t",
    "{half_underscored}",
    " {name}",
    "{name} ",
    "{name}\0",
)
"""Ten ways to write a header name that some server reads as the same one."""


def _spell(form: str, name: str) -> str:
    head, _, tail = name.partition("-")
    return form.format(
        name=name,
        upper=name.upper(),
        title=name.title(),
        underscored=name.replace("-", "_"),
        half_underscored=f"{head}_{tail}",
    )


def _over_http(stack: Stack, headers: list[tuple[str, str]], target: str = "/tools/invoke") -> Answer:
    return run_as(stack.owner, partial(http_request, stack.port, "POST", target, headers, body=INVOKE))


def _over_websocket(stack: Stack, auth: dict[str, str] | None, **more: object) -> Login:
    return run_as(stack.owner, partial(log_in, stack.port, auth, **more))  # type: ignore[arg-type]


def _assert_refused(stack: Stack, token: str, reason: str) -> None:
    """Both over HTTP and in the connect frame, with `reason` in what the person sees."""
    answer = _over_http(stack, [bearer(token)])
    assert answer.status == 401, answer.text
    assert reason in answer.json["error"]["message"]
    for field in ("password", "token"):
        login = _over_websocket(stack, {field: token})
        assert not login.ok
        assert reason in login.error["message"]
        assert login.close_code == 1008


def test_no_token(stack: Stack) -> None:
    assert _over_http(stack, []).status == 401
    login = _over_websocket(stack, None)
    assert not login.ok
    assert login.error["message"] == "device identity required"  # OpenClaw's own words


def test_an_expired_token(stack: Stack) -> None:
    token = stack.token(None, "--ttl", "1")
    time.sleep(1.1)
    _assert_refused(stack, token, "the token has expired")


def test_a_token_for_another_audience(stack: Stack) -> None:
    _assert_refused(stack, stack.token(None, "--audience", "elsewhere"), "another audience")


def test_a_tampered_token(stack: Stack) -> None:
    header, payload, signature = stack.token().split(".")
    other = "A" if payload[20] != "A" else "B"
    _assert_refused(stack, f"{header}.{payload[:20]}{other}{payload[21:]}.{signature}", "it was altered")
    _assert_refused(stack, f"{header}.{payload}.{'A' * len(signature)}", "it was altered")
    _assert_refused(stack, f"{header[:-4]}.{payload}.{signature}", "names no key that is trusted here")


@pytest.mark.root
def test_another_users_token(stack: Stack) -> None:
    _assert_refused(stack, stack.token(stack.stranger), "issued to another user")


@pytest.mark.root
def test_a_user_without_a_rule_gets_no_token_and_the_cli_says_why(stack: Stack) -> None:
    done = stack.gatepass.run(stack.nobody, "gatepass", "token", env=stack.environment())
    assert done.returncode == 3
    assert not done.stdout
    assert "no rule" in done.stderr
    with stack.another_cli(stack.nobody) as outsider:
        listed = outsider.cli("cron", "list")
        assert listed.returncode == 1
        assert "the gatepass broker grants this user nothing" in listed.stdout + listed.stderr


@pytest.mark.root
def test_a_user_whose_identity_the_gateway_does_not_know(stack: Stack) -> None:
    with stack.another_cli(stack.stranger) as stranger:
        listed = stranger.cli("cron", "list")
        assert listed.returncode == 1
        assert "knows no user 'mallory@example.com'" in listed.stdout + listed.stderr


@pytest.mark.parametrize("spelling", SPELLINGS, ids=repr)
def test_a_forged_identity_header(stack: Stack, spelling: str) -> None:
    forged = [(_spell(spelling, stack.user_header), USER)]
    _assert_nobody(stack, forged)
    _assert_nobody(stack, [*forged, ("X-Forwarded-For", "203.0.113.7")])


@pytest.mark.parametrize(
    "field",
    [("X-Forwarded-For", "203.0.113.7"), ("Forwarded", "for=203.0.113.7"), ("X-Real-IP", "203.0.113.7")],
    ids=lambda field: field[0],
)
def test_forwarding_headers_beside_a_good_token(stack: Stack, field: tuple[str, str]) -> None:
    answer = _over_http(stack, [bearer(stack.token()), field])
    assert answer.status == 403
    assert "counts only from the reverse proxy" in answer.text
    login = _over_websocket(stack, {"password": stack.token()}, headers=dict([field]))
    assert not login.ok


def _assert_nobody(stack: Stack, headers: list[tuple[str, str]]) -> None:
    """The header gives no identity over HTTP or WebSocket, whatever is answered."""
    answer = _over_http(stack, headers)
    assert answer.status in (400, 401, 403), answer.text
    login = _over_websocket(stack, None, headers=dict(headers))
    assert not login.ok


def test_the_new_name_after_the_identity_header_was_renamed_while_everything_runs(stack: Stack) -> None:
    """The proxy knows the old name and passes the new one on: OpenClaw does not believe it from that address."""
    renamed = "x-renamed-user"
    config = stack.openclaw_config()
    config["gateway"]["auth"]["trustedProxy"]["userHeader"] = renamed
    stack.openclaw.write_config(config)
    try:
        # In force once OpenClaw believes it from the address that it trusts.
        _wait_until(lambda: _from_identity_source(stack, renamed) == 200)
        for spelling in SPELLINGS:
            _assert_nobody(stack, [(_spell(spelling, renamed), USER), ("X-Gatepass-Test", "renamed")])
        assert not _over_websocket(stack, {"password": stack.token()}).ok  # fails closed: the proxy says the old name
    finally:
        stack.openclaw.write_config(stack.openclaw_config())
        _wait_until(lambda: _from_identity_source(stack, stack.user_header) == 200)


def _from_identity_source(stack: Stack, user_header: str) -> int:
    """Return the status of a request that OpenClaw gets as from the proxy itself."""
    fields = [(user_header, USER), ("X-Forwarded-For", "192.0.0.8"), ("X-OpenClaw-Scopes", "operator.write")]
    request = partial(
        http_request, stack.upstream_port, "POST", "/tools/invoke", fields, body=INVOKE, source=IDENTITY_SOURCE
    )
    return run_as(stack.owner, request).status


def _wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.3)


@pytest.mark.parametrize("target", ["/tools/invoke", "/__openclaw__/assistant-media", "/"])
def test_a_token_in_the_url(stack: Stack, target: str) -> None:
    for query in (f"token={stack.token()}", f"password={stack.token()}"):
        answer = _over_http(stack, [], f"{target}?{query}")
        assert answer.status == 400
        assert "not in the URL" in answer.text
        login = _over_websocket(stack, None, path=f"{target}?{query}")
        assert not login.ok


def test_the_gateways_own_resolved_secret(stack: Stack) -> None:
    """What OpenClaw got for itself is its fallback password on its own port, and worth nothing on ours."""
    answers = [json.loads(line)["values"]["gateway/password"] for line in stack.answers.read_text().splitlines()]
    resolved = [answer for answer in answers if answer.startswith("gatepass-none.gateway.")][-1]
    direct = partial(http_request, stack.upstream_port, "POST", "/tools/invoke", [bearer(resolved)], body=INVOKE)
    assert run_as(stack.owner, direct).status == 200  # it is the real one
    _assert_refused(stack, resolved, "the gateway's own placeholder password")
    for target in ("/tools/invoke", "/__openclaw__/assistant-media"):
        assert _over_http(stack, [], f"{target}?token={resolved}").status == 400
    escaped = resolved.replace("gatepass", "%67atepass")
    assert _over_http(stack, [], f"/__openclaw__/assistant-media?token={escaped}").status == 400


def test_the_gateway_itself_was_never_given_a_token(stack: Stack) -> None:
    """At its start and at a reload of its configuration; the stock CLI was, by the same launcher."""
    before = len(stack.answers.read_text().splitlines())
    offset = len(stack.openclaw.log_text())
    config = stack.openclaw_config()
    config["agents"]["defaults"]["maxConcurrent"] = 2
    stack.openclaw.write_config(config)
    stack.openclaw.wait_for_log("config.*reload|reload.*config|config change", 30, offset)
    _wait_until(lambda: len(stack.answers.read_text().splitlines()) > before)
    reloaded = stack.answers.read_text().splitlines()[before:]
    assert all("gatepass-none.gateway." in answer for answer in reloaded), reloaded
    stack.openclaw.cli("cron", "list")
    assert '"gateway/password":"eyJ' in stack.answers.read_text().splitlines()[-1]


@pytest.mark.parametrize(
    "fields",
    [
        [("X-OpenClaw-Scopes", "operator.admin,operator.write")],
        [("X-OpenClaw-Scopes", "operator.admin"), ("x-openclaw-scopes", "operator.write")],
        [("x-openclaw-scopes", "")],
        [("X_OpenClaw_Scopes", "operator.write")],
    ],
    ids=["wider", "twice", "empty", "underscores"],
)
def test_a_clients_own_scopes_header_changes_nothing(stack: Stack, fields: list[tuple[str, str]]) -> None:
    reader, writer = stack.token(None, "--scope", "operator.read"), stack.token()
    assert _over_http(stack, [bearer(reader), *fields]).status == 403
    assert _over_http(stack, [bearer(writer), *fields]).status == 200
    login = _over_websocket(stack, {"password": reader}, headers=dict(fields))
    assert login.scopes == ["operator.read"]


@pytest.mark.root
def test_a_hundred_idle_upgrades_of_one_user_keep_nobody_else_out(stack: Stack) -> None:
    with held_open(stack, 100) as opened:
        assert opened  # some were let in, and none of the others got a reset
        started = time.monotonic()
        login = _over_websocket(stack, {"password": stack.token()})
        assert login.ok, login.error
        assert time.monotonic() - started < 3


def test_a_first_frame_that_never_comes_ends_the_connection(stack: Stack) -> None:
    reason = run_as(stack.owner, _stay_silent, stack.port)
    assert "no connect request came in time" in reason


def _stay_silent(port: int) -> str:
    with open_websocket(port) as websocket:
        try:
            while True:
                websocket.recv(10)
        except ConnectionClosed as closed:
            return closed.rcvd.reason if closed.rcvd else ""


@contextmanager
def held_open(stack: Stack, count: int) -> Iterator[int]:
    """Have another user upgrade `count` connections and say nothing; yield how many were accepted."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            become(stack.stranger)
            accepted = 0
            sockets = []
            for _ in range(count):
                with suppress(InvalidStatus):  # 503; a reset would end this child, and the test
                    sockets.append(open_websocket(stack.port))
                    accepted += 1
            os.write(writable, str(accepted).encode())
            time.sleep(30)
        finally:
            os._exit(0)
    os.close(writable)
    try:
        yield int(os.read(readable, 10) or 0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(readable)
