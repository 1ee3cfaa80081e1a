"""The main job on the real thing: the stock CLI of an unmodified OpenClaw is in as the loopback user."""

from __future__ import annotations

from functools import partial

import pytest

from e2e.accounts import run_as
from e2e.callers import Answer, bearer, http_request, log_in
from e2e.openclaw_config import USER
from e2e.stack import Stack

pytestmark = pytest.mark.timeout(240)

CRON_JOB = ["--every", "1h", "--system-event", "x", "--session", "main"]


@pytest.mark.parametrize(
    "command",
    [["cron", "list"], ["health"], ["gateway", "call", "status"], ["gateway", "status"]],
    ids=" ".join,
)
def test_the_stock_cli_is_in_with_no_wrapper_and_no_environment_variable(stack: Stack, command: list[str]) -> None:
    offset = len(stack.openclaw.log_text())
    done = stack.openclaw.cli(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    stack.openclaw.wait_for_log(f"authenticated user connected .*user={USER}", 5, offset)
    if command == ["gateway", "status"]:  # exits with 0 whatever it finds
        assert "Connectivity probe: ok" in done.stdout


def test_the_cli_may_write_where_the_rule_says_so(stack: Stack) -> None:
    added = stack.openclaw.cli("cron", "add", "--name", "made-by-e2e", *CRON_JOB)
    assert added.returncode == 0, added.stdout + added.stderr
    assert "made-by-e2e" in stack.openclaw.cli("cron", "list").stdout


def test_a_cli_whose_token_only_reads_reads_and_cannot_write(stack: Stack) -> None:
    with stack.another_cli(stack.owner, "--scope", "operator.read") as reader:
        listed = reader.cli("cron", "list")
        assert listed.returncode == 0, listed.stdout + listed.stderr
        added = reader.cli("cron", "add", "--name", "not-made", *CRON_JOB)
        assert added.returncode == 1
        assert "missing scope: operator.admin" in added.stdout + added.stderr


def test_over_http_a_token_that_only_reads_reads_and_cannot_write(stack: Stack) -> None:
    token = stack.token(None, "--scope", "operator.read")
    assert _request(stack, "GET", "/v1/models", token).status == 200
    refused = _request(stack, "POST", "/tools/invoke", token, {"tool": "sessions_list", "args": {}})
    assert refused.status == 403
    assert "missing scope: operator.write" in refused.text


def test_tools_invoke_with_a_bearer_token_answers(stack: Stack) -> None:
    answer = _request(stack, "POST", "/tools/invoke", stack.token(), {"tool": "sessions_list", "args": {}})
    assert answer.status == 200, answer.text
    assert answer.json["ok"] is True


def test_a_streamed_answer_streams(stack: Stack) -> None:
    body = {"model": "openclaw", "stream": True, "messages": [{"role": "user", "content": "count"}]}
    answer = _request(stack, "POST", "/v1/chat/completions", stack.token(), body)
    assert answer.status == 200, answer.text
    assert "three" in answer.text
    assert "data: [DONE]" in answer.text
    # The model pauses for half a second between its three pieces: they must not arrive together.
    assert answer.arrivals[-1] - answer.arrivals[0] > 0.8


def test_gateway_probe_gets_the_gateways_own_answer(stack: Stack) -> None:
    done = stack.openclaw.cli("gateway", "probe")
    assert "Reachable: yes" in done.stdout, done.stdout + done.stderr
    assert "Connect: ok" in done.stdout
    assert "device identity required" in done.stdout


def test_the_session_has_the_scopes_of_token_and_request_together(stack: Stack) -> None:
    auth = {"password": stack.token(None, "--scope", "operator.read operator.write")}
    asked = {"scopes": ["operator.read", "operator.admin"]}
    login = run_as(stack.owner, partial(log_in, stack.port, auth, params=asked))
    assert login.ok, login.error
    assert login.scopes == ["operator.read"]


def _request(stack: Stack, method: str, target: str, token: str, body: object = None) -> Answer:
    return run_as(stack.owner, partial(http_request, stack.port, method, target, [bearer(token)], body=body))
