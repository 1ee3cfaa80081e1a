"""The command line of `gatepass-broker install`: what goes together, and that its help teaches."""

from __future__ import annotations

import pytest

from gatepass_broker.cli import main


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--undo", "--loopback-user", "d"], "--loopback-user has no part in it"),
        (["--undo", "--system"], "--system or --person has no part in it"),
        (["--purge"], "--purge goes with --undo"),
        (["--discard-changes", "--loopback-user", "d"], "--discard-changes goes with --undo"),
        (["--system", "--person"], "not allowed with argument"),
        (["--reverse-proxy", "www-data", "--no-reverse-proxy"], "not allowed with argument"),
        (["--undo", "--no-reverse-proxy"], "--reverse-proxy or --no-reverse-proxy has no part in it"),
        (["--port", "0"], "must be a number between 1 and 65535"),
        (["--port", "x"], "must be a number between 1 and 65535"),
        (["--loopback", "d"], "unrecognized arguments"),
    ],
)
def test_wrong_use_is_refused_with_2(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["install", *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_help_teaches_by_examples_and_says_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["install", "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert said.count("gatepass-broker install --") >= 3
    assert "exit codes:" in said


def test_the_brokers_own_help_leads_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "gatepass-broker install --help" in capsys.readouterr().out
