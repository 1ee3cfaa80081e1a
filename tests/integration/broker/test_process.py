"""The broker as a process: options, signals, exit codes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gatepass_broker.cli import main
from support.broker import BrokerProcess, RawClient, ask, broker_tables, error_code, own_rule, to_toml


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gatepass_broker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, env=env)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_it_starts_issues_and_stops(tmp_path: Path, loop: str) -> None:
    with BrokerProcess(tmp_path, options=["--loop", loop]) as broker:
        assert ask(broker.socket, op="issue")["ok"]
        assert broker.stop() == 0
        assert not broker.socket.exists()
        assert "event=stopped" in broker.log
    checked = run("--config", str(broker.config), "--check-journal")
    assert checked.returncode == 0, checked.stderr
    assert "hold together" in checked.stdout


def test_sighup_reloads_and_keeps_the_last_good_configuration(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path) as broker, RawClient(broker.socket) as client:
        assert client.ask(op="issue")["ok"]
        broker.config.write_text("[broker\n")
        broker.signal(signal.SIGHUP)
        broker.wait_for_log("the last good one stays")
        assert client.ask(op="issue")["ok"]

        broker.write_config(broker_tables(tmp_path, rules=[own_rule(uid=1)], broker={"id": "other"}))
        broker.signal(signal.SIGHUP)
        broker.wait_for_log("configuration reloaded")
        assert error_code(client.ask(op="issue")) == "denied"
        assert client.ask(op="whoami")["issuer"] == "gatepass:test"
        assert "key=broker.id" in broker.log


def test_sigint_stops_too(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path) as broker:
        broker.signal(signal.SIGINT)

        assert broker.wait() == 0


def test_no_token_and_no_traceback_is_logged(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path) as broker:
        token: str = ask(broker.socket, op="issue")["token"]
        ask(broker.socket, op="verify", token=token[:-2])
        with RawClient(broker.socket) as client:
            client.send(b"\0\0\0\5hello")
            client.receive()
        broker.stop()

        assert token.rsplit(".", 1)[0] not in broker.log
        assert "Traceback" not in broker.log


def test_a_personal_broker_without_a_file(tmp_path: Path) -> None:
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
    command = [sys.executable, "-m", "gatepass_broker", "--loopback-user", "derek@example.com", "--scope", "a"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environ, text=True) as process:
        assert process.stderr is not None
        assert "event=ready" in process.stderr.readline()
        reply = ask(tmp_path / "gatepass" / "broker.sock", op="issue")
        process.terminate()
        process.stderr.read()

    assert process.returncode == 0
    assert (reply["subject"], reply["scope"]) == ("derek@example.com", "a")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 2, "required"),
        (("--config", "x", "--loopback-user", "y"), 2, "not allowed with"),
        (("--config", "x", "--socket", "y"), 2, "--socket goes with --loopback-user"),
        (("--config", "/nonexistent/broker.toml"), 6, "/nonexistent"),
        (("--version",), 0, "gatepass-broker 0"),
        (("--help",), 0, "examples:"),
    ],
)
def test_usage(arguments: tuple[str, ...], code: int, text: str) -> None:
    done = run(*arguments)

    assert done.returncode == code
    assert text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_check_names_the_fault(tmp_path: Path) -> None:
    config = tmp_path / "broker.toml"
    config.write_text(to_toml(broker_tables(tmp_path, rules=[own_rule(max_tll=3)])))
    config.chmod(0o600)
    done = run("--config", str(config), "--check")

    assert done.returncode == 6
    assert f"{config}: rule[0]: there is no key 'max_tll' here; did you mean 'max_ttl'?" in done.stderr


def test_check_of_a_good_one(tmp_path: Path) -> None:
    config = tmp_path / "broker.toml"
    config.write_text(to_toml(broker_tables(tmp_path)))
    config.chmod(0o600)

    assert run("--config", str(config), "--check").returncode == 0


def test_a_second_broker_says_who_is_in_the_way(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path) as broker:
        done = run("--config", str(broker.config))

        assert done.returncode == 6
        assert "another broker" in done.stderr
        assert ask(broker.socket, op="issue")["ok"]


def test_a_missing_extra_is_explained(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("gatepass.daemon.command.find_spec", lambda name: None if name == "msgspec" else object())

    assert main(["--config", "x"]) == 1
    assert "pip install 'gatepass[broker]'" in capsys.readouterr().err


def test_a_listen_queue_that_is_not_served_does_not_look_stale(tmp_path: Path) -> None:
    """The process is stopped (SIGSTOP): its socket is live all the same."""
    with BrokerProcess(tmp_path) as broker:
        broker.signal(signal.SIGSTOP)
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(broker.socket))
            assert run("--config", str(broker.config)).returncode == 6
            assert broker.socket.exists()
        finally:
            broker.signal(signal.SIGCONT)
