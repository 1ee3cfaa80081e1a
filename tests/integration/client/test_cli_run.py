"""`gatepass run`: what its command sees, and how it behaves in its place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.broker import BrokerProcess
from support.client import ISSUE_RESULT, Conversation, cli_command, cli_environment, run_cli, scripted


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path_factory.mktemp("b")) as process:
        yield process


def run(broker: BrokerProcess, *arguments: str, **popen: Any) -> subprocess.CompletedProcess[str]:
    return run_cli("run", *arguments, socket=broker.socket, **popen)


def python(code: str) -> list[str]:
    return ["--", sys.executable, "-c", code]


def test_the_command_reads_a_token_from_the_file(broker: BrokerProcess) -> None:
    done = run(broker, "--", "sh", "-c", 'cat "$GATEPASS_TOKEN_FILE"; echo " $GATEPASS_SOCKET" >&2')
    assert done.returncode == 0
    assert done.stderr == f" {broker.socket}\n"
    assert run_cli("verify", socket=broker.socket, stdin=done.stdout).returncode == 0


def test_50_the_token_is_in_no_argv_and_no_environment(broker: BrokerProcess) -> None:
    code = """
import os, pathlib
token = pathlib.Path(os.environ["GATEPASS_TOKEN_FILE"]).read_bytes()
for pid in (os.getpid(), os.getppid()):
    for name in ("cmdline", "environ"):
        assert token not in pathlib.Path(f"/proc/{pid}/{name}").read_bytes()
assert token.count(b".") == 2
"""
    assert run(broker, *python(code)).stderr == ""


def test_50_the_file_cannot_be_changed_and_is_closed_to_others(broker: BrokerProcess) -> None:
    code = """
import os
path = os.environ["GATEPASS_TOKEN_FILE"]
assert os.stat(path).st_mode & 0o777 == 0o400
for attempt in (lambda: os.truncate(path, 0), lambda: os.write(os.open(path, os.O_RDWR), b"x")):
    try:
        attempt()
    except PermissionError:
        pass
    else:
        raise SystemExit("changed")
assert not any("gatepass-token" in os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")[:3])
"""
    assert run(broker, *python(code)).returncode == 0


def test_the_environment_holds_the_token_only_on_request(broker: BrokerProcess) -> None:
    show = ["--", "sh", "-c", 'printf %s "$MY_TOKEN"']
    assert run(broker, *show).stdout == ""
    assert run(broker, "--env", "MY_TOKEN", *show).stdout.count(".") == 2


EXITS = [
    (["true"], 0, ""),
    (["sh", "-c", "exit 42"], 42, ""),
    (["sh", "-c", "kill -TERM $$"], 128 + 15, ""),
    (["sh", "-c", "kill -KILL $$"], 128 + 9, ""),
    (["no-such-command"], 127, "gatepass: 'no-such-command' was not found\n"),
    (["/etc/passwd"], 126, "gatepass: '/etc/passwd' cannot be executed: [Errno 13] Permission denied: '/etc/passwd'\n"),
]


@pytest.mark.parametrize(("command", "status", "err"), EXITS, ids=[" ".join(exit_[0]) for exit_ in EXITS])
@pytest.mark.parametrize("separator", [["--"], []], ids=["dashes", "bare"])
def test_the_exit_status_is_the_commands(
    broker: BrokerProcess, command: list[str], status: int, err: str, separator: list[str]
) -> None:
    done = run(broker, *separator, *command)
    assert (done.returncode, done.stderr) == (status, err)


def test_options_of_the_command_are_its_own(broker: BrokerProcess) -> None:
    assert run(broker, "--", "echo", "--json", "--", "-x").stdout == "--json -- -x\n"


def test_its_own_failure_is_125_and_the_command_does_not_run(broker: BrokerProcess, tmp_path: Path) -> None:
    touch = ["--", "touch", str(tmp_path / "ran")]
    denied = run(broker, "--scope", "nope", *touch)
    assert denied.returncode == 125
    assert denied.stderr.startswith("gatepass: scope 'nope' is not granted")
    assert run(broker, "--socket", "/nowhere/s", "--timeout", "0.1", *touch).returncode == 125
    assert not (tmp_path / "ran").exists()


def test_standard_input_and_output_are_the_commands(broker: BrokerProcess) -> None:
    assert run(broker, "--", "cat", stdin="through").stdout == "through"


def test_signals_that_python_ignores_are_as_usual_in_the_command(broker: BrokerProcess) -> None:
    assert run(broker, "--", "grep", "SigBlk", "/proc/self/status").stdout == f"SigBlk:\t{'0' * 16}\n"
    assert run(broker, "--", "sh", "-c", "kill -PIPE $$; exit 1").returncode == 128 + 13


_TRAP = r"""
import os, signal, sys, time
def note(number, frame):
    os.write(1, f"{signal.Signals(number).name}\n".encode())
    if number == signal.SIGTERM: os._exit(3)
for name in sys.argv[1:]: signal.signal(getattr(signal, name), note)
os.write(1, b"ready\n")
while True: time.sleep(1)
"""


def test_signals_are_passed_on(broker: BrokerProcess) -> None:
    names = ["SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGTERM"]
    command = cli_command("run", "--", sys.executable, "-c", _TRAP, *names)
    with subprocess.Popen(command, env=cli_environment(broker.socket), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for name in names:
            process.send_signal(getattr(signal, name))
            assert process.stdout.readline() == f"{name}\n"
        assert process.wait(5) == 3


# Waits for signals instead of handling them: Python would run one handler for two that come close together.
_COUNT = r"""
import os, signal
waited = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, waited)
os.write(1, b"ready\n")
while (number := signal.sigwait(waited)) == signal.SIGINT: os.write(1, b"SIGINT\n")
os._exit(3)
"""


def test_ctrl_c_reaches_the_command_once(broker: BrokerProcess) -> None:
    """A terminal sends it to the whole group, so passing it on as well would double it."""
    code = f"""
import os, pty, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.executable, {cli_command("run", "--", sys.executable, "-c", _COUNT)!r})
seen = b""
while b"ready" not in seen: seen += os.read(terminal, 999)
os.write(terminal, b"\\x03")
while b"SIGINT" not in seen: seen += os.read(terminal, 999)
time.sleep(0.3)
os.kill(pid, 15)
try:
    while chunk := os.read(terminal, 999): seen += chunk
except OSError: pass
assert seen.count(b"SIGINT") == 1, seen
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
"""
    subprocess.run([sys.executable, "-c", code], env=cli_environment(broker.socket), check=True, timeout=20)


def test_when_it_is_killed_its_command_is_told_to_end(broker: BrokerProcess) -> None:
    command = cli_command("run", "--", sys.executable, "-c", _TRAP, "SIGTERM")
    with subprocess.Popen(command, env=cli_environment(broker.socket), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
        assert process.stdout.readline() == "SIGTERM\n"
        assert process.stdout.read() == ""


def numbered_tokens(expires_in: int) -> Callable[[Conversation], None]:
    number = iter(range(1, 1000))

    def script(talk: Conversation) -> None:
        talk.answer({**ISSUE_RESULT, "token": f"token-{next(number)}", "expires_in": expires_in})

    return script


_WATCH = """
import os, sys, time
path, seen = os.environ["GATEPASS_TOKEN_FILE"], []
while len(seen) < 2:
    with open(path) as file: token = file.read()
    assert token.startswith("token-"), token
    if token not in seen: seen.append(token)
print(*seen)
"""


def test_the_token_is_renewed_and_no_reader_ever_sees_half_of_one(tmp_path: Path) -> None:
    with scripted(tmp_path / "s", numbered_tokens(expires_in=1)):
        begun = time.monotonic()
        done = run_cli("run", *python(_WATCH), socket=tmp_path / "s")
    assert done.stdout == "token-1 token-2\n"
    assert 0.8 <= time.monotonic() - begun < 4


def test_a_renewal_that_fails_is_told_and_the_command_goes_on(tmp_path: Path) -> None:
    def deny(talk: Conversation) -> None:
        talk.refuse("denied", "no longer")

    with scripted(tmp_path / "s", numbered_tokens(expires_in=1), deny):
        done = run_cli("run", "--", "sleep", "1", socket=tmp_path / "s")
    assert done.returncode == 0
    assert done.stderr == "gatepass: the token could not be renewed: no longer\n"


def test_50_a_core_dump_would_not_hold_the_token(broker: BrokerProcess) -> None:
    code = "import os, resource, time; time.sleep(0.3); print(resource.prlimit(os.getppid(), resource.RLIMIT_CORE))"
    assert run(broker, *python(code)).stdout == "(0, 0)\n"


def test_an_ignored_sigchld_does_not_lose_the_exit_status(broker: BrokerProcess) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    assert run(broker, "--", "sh", "-c", "exit 9", preexec_fn=ignore).returncode == 9


@pytest.mark.parametrize("redirection", ["<&-", "2>&-", "<&- 2>&-"])
def test_the_token_never_takes_the_place_of_a_closed_standard_descriptor(
    broker: BrokerProcess, redirection: str
) -> None:
    run_it = cli_command("run", "--", "sh", "-c", 'echo "$GATEPASS_TOKEN_FILE"')
    command = ["sh", "-c", f'"$@" {redirection}', "sh", *run_it]
    done = subprocess.run(command, env=cli_environment(broker.socket), capture_output=True, text=True, check=True)
    assert int(done.stdout.rpartition("/")[2]) > 2


def test_the_child_has_no_more_rights_to_the_broker_than_its_user(broker: BrokerProcess) -> None:
    assert run(broker, "--", *cli_command("whoami")).stdout.startswith(f"uid           {os.geteuid()}\n")
