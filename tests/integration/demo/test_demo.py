"""`make demo` as people run it: a process, its output and its exit status."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
COMMAND = [sys.executable, "-m", "demo"]
NOT_TRIED = "not tried"

OUTCOMES = {
    "reverse proxy, for alice": ("200", "in", "alice@example.com"),
    "bare loopback call": ("401", "refused", "no identity"),
    "forged identity header": ("403", "refused", "counts only from the reverse proxy"),
    "CLI with a token": ("200", "in", "derek@example.com: operator.read operator.write"),
    "token for another audience": ("401", "refused", "for another audience"),
    "expired token": ("401", "refused", "has expired"),
    "token changed to say alice": ("401", "refused", "signature does not fit"),
    "token shown by another uid": ("401", "refused", "issued to another user"),
    "broker stopped: no token": ("401", "refused", "broker was not"),
    "broker stopped: old token": ("200", "in", "derek@example.com"),
}

# What a gateway with two holes would run: no token ever ends, and anybody may bring the identity header.
HOLES = """
import gatepass.tokens
import gatepass_gateway.trusted_proxy as handler
gatepass.tokens._check_life = lambda *_: None
handler._refuse_forged_headers = lambda *_: None
"""

BROKEN = """
import gatepass_gateway.sock_diag
gatepass_gateway.sock_diag.SockDiag = None
"""


def environment(**more: str) -> dict[str, str]:
    """Return this environment less what would colour the output, with `more`."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    return {**kept, "PYTHONPATH": str(CHECKOUT / "tests"), **more}


def run_demo(env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(COMMAND, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=25, check=False)


@pytest.fixture(scope="module")
def shown() -> str:
    """What the demo prints where all is well."""
    done = run_demo(environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def test_every_row_comes_out_as_it_must(shown: str) -> None:
    for title, (http, websocket, reason) in OUTCOMES.items():
        (line,) = re.findall(rf"^{title} .*", shown, re.MULTILINE)
        if NOT_TRIED in line:
            assert (title, os.geteuid() == 0) == ("token shown by another uid", False)
            continue
        assert line.removeprefix(title).split(maxsplit=2)[:2] == [http, websocket]
        assert reason in line


def test_the_text_fits_a_hundred_columns_and_has_no_colour_in_a_pipe(shown: str) -> None:
    assert max(map(len, shown.splitlines())) <= 100
    assert "\x1b" not in shown


def test_the_readme_shows_the_table_as_it_is(shown: str) -> None:
    block = re.search(r"<!-- make demo -->\n+```\w*\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    if block is None:
        pytest.skip("the README has no block marked <!-- make demo -->")
    if NOT_TRIED in shown:
        pytest.skip("the README shows the rows of root, of which this user cannot try all")
    table = shown[shown.index("who calls") : shown.index("\n\nAll ")]
    assert block[1].strip() == table, "put the table that `make demo` prints as root into README.md"


def test_a_gateway_with_a_hole_in_it_makes_the_demo_fail_and_say_where(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HOLES)
    done = run_demo(environment(PYTHONPATH=f"{tmp_path}:{CHECKOUT / 'tests'}"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "\nWRONG: forged identity header, expired token." in done.stdout
    assert "it must be refused (401), token_expired; it was in as derek@example.com" in " ".join(done.stdout.split())


def test_a_gateway_that_does_not_start_is_reported_with_what_it_said(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    done = run_demo(environment(PYTHONPATH=f"{tmp_path}:{CHECKOUT / 'tests'}"))
    assert done.returncode == 1
    assert done.stderr.startswith("\ngatepass demo: a process of the demo did not start; it said:\n")
    assert "'NoneType' object is not callable" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    ours, theirs = pty.openpty()
    env = environment(TMPDIR=str(tmp_path), TERM="xterm")
    with subprocess.Popen(COMMAND, cwd=CHECKOUT, env=env, stdout=theirs, stderr=theirs, start_new_session=True) as demo:
        os.close(theirs)
        shown = b""
        while b"bare loopback call" not in shown:
            shown += os.read(ours, 4096)
        assert list(tmp_path.iterdir())
        if number is signal.SIGINT:
            os.killpg(demo.pid, number)  # as a terminal sends it: to all of them
        else:
            demo.send_signal(number)
        assert demo.wait(15) == 128 + number
    os.close(ours)
    assert b"\x1b[32m200" in shown  # on a terminal there is colour
    assert not list(tmp_path.iterdir())
    assert processes_that_name(tmp_path) == []


def processes_that_name(path: Path) -> list[str]:
    """Return the command lines of running processes in which `path` occurs."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # ended meanwhile
            continue
        if str(path) in command:
            found.append(command)
    return found
