"""What the commands print and how they exit: a table of command lines."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatepass.frames import Message
from support.broker import SCOPES, USER, BrokerProcess
from support.client import Conversation, always, cli_command, cli_environment, run_cli, scripted

TOKEN = r"[\w-]+\.[\w-]+\.[\w-]+\n"
NOTHING = ""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path_factory.mktemp("b")) as process:
        yield process


TABLE: list[tuple[str, int, str, str]] = [
    # command                                 exit  stdout                        stderr
    ("token", 0, TOKEN, NOTHING),
    ("token --audience openclaw --ttl 60", 0, TOKEN, NOTHING),
    ("token --scope operator.admin", 3, NOTHING, "gatepass: scope 'operator.admin' is not granted; granted: .*\n"),
    ("token --audience x", 3, NOTHING, "gatepass: audience 'x' is not granted; granted: openclaw\n"),
    ("token --ttl x", 2, NOTHING, "gatepass: argument --ttl: invalid int value: 'x'; see 'gatepass token --help'\n"),
    ("token --ttl 99999999999999999999", 1, NOTHING, "gatepass: a value in the message fits into no frame .*\n"),
    ("token --audience \udcff", 1, NOTHING, "gatepass: a value in the message fits into no frame .*\n"),
    ("token --ttl 0", 1, NOTHING, "gatepass: 'ttl' must be a positive whole number of seconds\n"),
    ("token --aud x", 2, NOTHING, "gatepass: unrecognized arguments: --aud x; see 'gatepass token --help'\n"),
    ("token --timeout 0", 2, NOTHING, "gatepass: argument --timeout: must be .*\n"),
    ("token --socket relative", 6, NOTHING, "gatepass: 'relative': the socket must be given as an absolute path\n"),
    ("token --socket @abstract", 5, NOTHING, "gatepass: what answers may not be the broker: an abstract socket .*\n"),
    ("token --socket /nowhere/s --timeout .1", 5, NOTHING, "gatepass: no broker is running, /nowhere/s does not .*\n"),
    ("whoami", 0, rf"uid +{os.geteuid()}\n(.*\n)*identity +{USER}\n(.*\n)*", NOTHING),
    ("status", 0, r"broker +gatepass:test, running at /.*\n(.*\n)*gateways +0\nlocked +no\n(.*\n)*", NOTHING),
    ("verify", 2, NOTHING, "gatepass: there is no token in standard input; see 'gatepass verify --help'\n"),
    ("verify --token-file /nowhere/x", 1, NOTHING, "gatepass: the token cannot be read from /nowhere/x: No such .*\n"),
    ("run", 2, NOTHING, "gatepass: a command to run is needed; see 'gatepass run --help'\n"),
    ("run --env a=b -- true", 2, NOTHING, "gatepass: --env needs the name of a variable; .*\n"),
    ("", 2, NOTHING, "gatepass: a command is needed; see 'gatepass --help'\n"),
    ("toke", 2, NOTHING, "gatepass: there is no command 'toke'; see 'gatepass --help'\n"),
    ("openclaw", 2, NOTHING, "gatepass: after 'openclaw' one of its commands is needed: .*; see 'gatepass --help'\n"),
    ("--version", 0, r"gatepass \d+\.\d+\.\d+\n", NOTHING),
    ("--help", 0, r"usage: gatepass COMMAND (.*\n)*exit statuses:\n(.*\n)*", NOTHING),
    ("token --help", 0, r"usage: gatepass token (.*\n)*examples:\n(.*\n)*", NOTHING),
    ("run --help", 0, r"usage: gatepass run \[options\] -- CMD (.*\n)*examples:\n(.*\n)*", NOTHING),
    ("openclaw secret --help", 0, r"usage: gatepass openclaw secret (.*\n)*examples:\n(.*\n)*", NOTHING),
]


@pytest.mark.parametrize(("line", "status", "out", "err"), TABLE, ids=[ascii(line[0]) for line in TABLE])
def test_command(broker: BrokerProcess, line: str, status: int, out: str, err: str) -> None:
    done = run_cli(*line.split(), socket=broker.socket)
    assert done.returncode == status
    assert re.fullmatch(out, done.stdout), done.stdout
    assert re.fullmatch(err, done.stderr), done.stderr


FAULTS = {
    "token_malformed": 10,
    "token_unknown_key": 11,
    "token_bad_signature": 12,
    "token_wrong_issuer": 13,
    "token_wrong_audience": 14,
    "token_expired": 15,
    "token_not_yet_valid": 16,
    "token_wrong_boot": 17,
    "token_wrong_uid": 18,
    "token_revoked": 19,
    "token_wrong_unit": 20,
    "token_process_ended": 21,
    "denied": 3,
    "operation_not_allowed": 3,
    "locked": 3,
    "rate_limited": 4,
    "internal": 4,
    "unsupported_version": 1,
    "of_a_newer_broker": 1,
}


def test_each_refusal_has_its_exit_status(tmp_path: Path) -> None:
    remaining = iter(FAULTS)

    def refuse(talk: Conversation) -> None:
        talk.refuse(next(remaining), "the reason")

    with scripted(tmp_path / "s", refuse):
        for code, status in FAULTS.items():
            done = run_cli("verify", socket=tmp_path / "s", stdin="x")
            assert (code, done.returncode) == (code, status)
            assert done.stderr.startswith("gatepass: the reason")


def test_a_token_verifies(broker: BrokerProcess) -> None:
    token = run_cli("token", socket=broker.socket).stdout
    done = run_cli("verify", socket=broker.socket, stdin=f"  {token}\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(rf"subject +{USER}\n", done.stdout)
    assert re.search(r"\nid +[\w-]{22}\n", done.stdout)
    other = run_cli("verify", "--audience", "other", socket=broker.socket, stdin=token)
    assert (other.returncode, other.stdout) == (14, "")
    assert token.strip() not in other.stderr


def test_json_everywhere(broker: BrokerProcess, tmp_path: Path) -> None:
    def result(*command: str) -> dict[str, object]:
        done = run_cli(*command, "--json", socket=broker.socket)
        assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
        value: dict[str, object] = json.loads(done.stdout)
        return value

    issued = result("token")
    assert (issued["subject"], issued["expires_in"]) == (USER, 300)
    (tmp_path / "token").write_text(str(issued["token"]))
    claims = result("verify", "--token-file", str(tmp_path / "token"))["claims"]
    assert isinstance(claims, dict)
    assert claims["sub"] == USER
    assert result("whoami")["grant"] == {
        "identity": USER,
        "audiences": ["openclaw"],
        "scope": " ".join(SCOPES),
        "max_ttl": 3600,
        "binding": "uid",
        "reconnect": 0,
    }
    assert result("status")["socket"] == str(broker.socket)


def test_who_has_no_rule_is_told_so(tmp_path: Path) -> None:
    result: Message = {
        "caller": {"uid": 7, "gid": None, "groups": [], "pid": None},
        "grant": None,
        "issuer": "gatepass:x",
    }
    with scripted(tmp_path / "s", always(lambda talk: talk.answer(result))):
        done = run_cli("whoami", socket=tmp_path / "s")
    assert done.returncode == 0
    assert "identity  none: no rule of the broker matches, so tokens are denied; 'gatepass explain' says" in done.stdout
    assert "pid       unknown\n" in done.stdout
    assert "unit      unknown\ncgroup    unknown\n" in done.stdout


@pytest.mark.parametrize(("unit", "shown"), [("a.service", "a.service"), (None, "none")])
def test_whoami_shows_the_unit_and_what_a_token_is_bound_to(tmp_path: Path, unit: str | None, shown: str) -> None:
    grant = {"identity": USER, "audiences": ["x"], "scope": "", "max_ttl": 9, "binding": "unit", "reconnect": 60}
    result: Message = {
        "caller": {"uid": 7, "gid": 7, "groups": [], "pid": 7, "unit": unit, "cgroup": "/a"},
        "grant": grant,
        "issuer": "gatepass:x",
    }
    with scripted(tmp_path / "s", always(lambda talk: talk.answer(result))):
        out = run_cli("whoami", socket=tmp_path / "s").stdout
    assert f"unit          {shown}\ncgroup        /a\n" in out
    assert out.endswith("longest life  9 s\nbinding       unit\nreconnect     for 60 s\n")


@pytest.mark.parametrize(
    ("redirection", "err"),
    [
        (">/dev/full", "could not be written to standard output: No space left on device"),
        (">&-", "has nowhere to go: standard output is closed"),
    ],
    ids=["full", "closed"],
)
def test_a_result_that_cannot_be_delivered_is_a_failure(broker: BrokerProcess, redirection: str, err: str) -> None:
    command = ["sh", "-c", f'"$@" {redirection}', "sh", *cli_command("token")]
    done = subprocess.run(command, env=cli_environment(broker.socket), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"gatepass: the result {err}\n"


def test_with_every_descriptor_closed_the_exit_status_still_tells(broker: BrokerProcess) -> None:
    command = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *cli_command("token", "--scope", "nope")]
    assert subprocess.run(command, env=cli_environment(broker.socket), check=False).returncode == 3


def test_on_a_terminal_a_token_comes_with_a_word_of_caution(broker: BrokerProcess) -> None:
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        cli_command("token"), env=cli_environment(broker.socket), stdout=terminal, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        caution = process.stderr.read().decode()
    assert re.fullmatch(TOKEN.replace("\\n", "\r\n"), os.read(controller, 9999).decode())
    assert caution == "gatepass: this token stays in your terminal's scrollback; it ends in 300 s\n"
    os.close(controller)
    os.close(terminal)
