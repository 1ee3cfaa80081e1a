"""`gatepass openclaw secret` never fails: whatever goes wrong, it answers, and soon."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.broker import BrokerProcess
from support.client import Conversation, cli_command, cli_environment, run_cli, scripted

REQUEST = '{"protocolVersion":1,"provider":"gatepass","ids":["gateway/password","other"]}'
COMMAND = "openclaw-cron"
TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path_factory.mktemp("b")) as process:
        yield process


def ask(
    *options: str, socket: object = "/nowhere/s", stdin: str | bytes = REQUEST, name: str | None = COMMAND
) -> tuple[dict[str, str], str]:
    """Return the values that were answered, and what was said on stderr."""
    done = run_cli("openclaw", "secret", *options, socket=socket, stdin=stdin, name=name)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer.keys() == {"protocolVersion", "values"}
    assert answer["protocolVersion"] == 1
    values: dict[str, str] = answer["values"]
    return values, done.stderr


def reasons(values: dict[str, str]) -> set[str]:
    """Return the reasons in secrets that cannot log in, after checking that they are such and all different."""
    parts = [secret.split(".") for secret in values.values()]
    assert all(part[0] == "gatepass-none" and re.fullmatch(r"[\w-]{22}", part[2]) for part in parts)
    assert len({part[2] for part in parts}) == len(parts)
    return {part[1] for part in parts}


def test_a_command_gets_one_token_for_all_ids(broker: BrokerProcess) -> None:
    values, err = ask(socket=broker.socket)
    assert values.keys() == {"gateway/password", "other"}
    assert len(set(values.values())) == 1
    assert TOKEN.fullmatch(values["other"])
    assert err == ""


def test_options_say_which_token(broker: BrokerProcess) -> None:
    values, _ = ask("--audience", "openclaw", "--scope", "operator.read", "--ttl", "60", socket=broker.socket)
    verified = run_cli("verify", "--json", socket=broker.socket, stdin=values["other"])
    claims = json.loads(verified.stdout)["claims"]
    assert (claims["scope"], claims["exp"] - claims["iat"]) == ("operator.read", 60)


@pytest.mark.parametrize("name", ["openclaw-gateway", "node"])
def test_what_may_be_the_gateway_gets_no_token(broker: BrokerProcess, name: str) -> None:
    values, err = ask(socket=broker.socket, name=name)
    assert reasons(values) == {"gateway"}
    assert "may be the gateway" in err


def test_the_gateways_own_port_variable_gives_it_away(broker: BrokerProcess) -> None:
    script = 'OPENCLAW_GATEWAY_PORT=1 exec -a openclaw bash -c \'"$@"; exit $?\' bash "$@"'
    inherited = ["bash", "-c", script, "x", *cli_command("openclaw", "secret")]
    itself = ["bash", "-c", 'exec -a openclaw bash -c \'export OPENCLAW_GATEWAY_PORT=1; "$@"; exit $?\' bash "$@"']
    itself += ["x", *cli_command("openclaw", "secret")]
    secrets = [
        json.loads(
            subprocess.run(
                command, input=REQUEST, env=cli_environment(broker.socket), capture_output=True, text=True, check=True
            ).stdout
        )["values"]["other"]
        for command in (inherited, itself)
    ]
    assert TOKEN.fullmatch(secrets[0])
    assert secrets[1].startswith("gatepass-none.gateway.")


def test_a_missing_broker_is_answered_with_the_reason() -> None:
    values, err = ask("--timeout", "0.2")
    assert reasons(values) == {"unreachable"}
    assert err.startswith("gatepass: no token: no broker is running")


def test_whatever_hangs_costs_the_budget_and_no_more(tmp_path: Path) -> None:
    """A silent broker and a silent stdin, at the same time; OpenClaw would give up after 5 s."""
    reader, writer = os.pipe()
    begun = time.monotonic()
    with (
        scripted(tmp_path / "s", lambda talk: talk.stay_silent()),
        subprocess.Popen(cli_command("openclaw", "secret"), stdin=reader, stdout=subprocess.PIPE) as silent_stdin,
    ):
        values, _ = ask(socket=tmp_path / "s")
        assert time.monotonic() - begun < 3.5
        assert silent_stdin.communicate()[0] == b'{"protocolVersion":1,"values":{}}'
        assert 2.4 < time.monotonic() - begun < 4
    assert reasons(values) == {"timeout"}
    assert silent_stdin.returncode == 0
    os.close(reader)
    os.close(writer)


def test_stdin_that_stays_open_costs_nothing(broker: BrokerProcess) -> None:
    reader, writer = os.pipe()
    script = f'exec -a {COMMAND} bash -c \'"$@"; exit $?\' bash "$@"'
    command = ["bash", "-c", script, "x", *cli_command("openclaw", "secret")]
    os.write(writer, REQUEST.encode())
    with subprocess.Popen(command, env=cli_environment(broker.socket), stdin=reader, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"gatepass-none" not in process.stdout.read()
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    "stdin",
    ["", "{", "[]", '{"ids":"x"}', '{"ids":[1]}', b"\xff\xfe\x00", "[" * 200_000, "x" * 1_100_000],
    ids=["empty", "cut off", "list", "no list", "numbers", "not UTF-8", "deep", "long"],
)
def test_broken_stdin_gets_an_empty_answer(stdin: str | bytes) -> None:
    values, err = ask(stdin=stdin)
    assert values == {}
    assert err == "gatepass: no token: standard input holds no request of OpenClaw's exec-secret protocol\n"


def test_a_secret_in_stdin_is_not_repeated() -> None:
    _, err = ask(stdin='{"ids": "hunter2"}')
    assert "hunter2" not in err


@pytest.mark.parametrize(
    ("options", "socket", "reason"),
    [
        (["--no-such-option"], None, "misconfigured"),
        (["--ttl", "soon"], None, "misconfigured"),
        (["--socket", "relative"], None, "misconfigured"),
        (["--socket", "@abstract"], None, "impostor"),
        (["--scope", "nope"], "broker", "denied"),
        (["--ttl", "0"], "broker", "invalid_request"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_the_reason_is_in_the_secret(
    broker: BrokerProcess, options: list[str], socket: str | None, reason: str
) -> None:
    values, err = ask(*options, socket=broker.socket)
    assert reasons(values) == {reason}
    assert "gatepass: " in err


def test_a_broken_installation_is_answered_too(tmp_path: Path) -> None:
    (tmp_path / "msgpack.py").write_text("raise RuntimeError('broken')")
    done = run_cli("openclaw", "secret", stdin=REQUEST, name=COMMAND, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0
    assert reasons(json.loads(done.stdout)["values"]) == {"internal"}
    assert "RuntimeError" in done.stderr


def test_a_broker_that_talks_nonsense(tmp_path: Path) -> None:
    def nonsense(talk: Conversation) -> None:
        talk.send(b"\xff" * 100)

    with scripted(tmp_path / "s", nonsense):
        values, _ = ask(socket=tmp_path / "s")
    assert reasons(values) == {"malformed"}


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_and_full_descriptors_are_no_failure(redirection: str) -> None:
    command = ["sh", "-c", f'"$@" {redirection}', "sh", *cli_command("openclaw", "secret", "--timeout", "0.1")]
    done = subprocess.run(
        command, input=REQUEST, env=cli_environment("/nowhere/s"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    if redirection == "<&-":
        assert "holds no request" in done.stderr
