"""`gatepass-broker install` where it cannot work: everything that stands against it, in one go, and nothing changed."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Installer

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        Path("/run/systemd/system").exists() and os.geteuid() == 0,
        reason="this machine runs systemd, and root could install; tests/e2e does, in one of its own",
    ),
]

MADE = ("/opt/gatepass", "/etc/gatepass", "/usr/local/lib/sysusers.d/gatepass.conf", "/run/gatepass-install.lock")


@pytest.fixture(autouse=True)
def _one_at_a_time() -> Iterator[None]:
    """The command itself refuses to run beside another one, which a test beside this one may have started."""
    with (Path(tempfile.gettempdir()) / "gatepass-tests-install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_everything_that_stands_against_it_is_said_at_once(fresh: Installer) -> None:
    before = [os.path.lexists(path) for path in MADE]
    done = fresh.run(
        *("install", "--loopback-user", "derek@example.com", "--openclaw-user", "nobody-by-this-name"),
        *("--user", "nor-by-this", "--reverse-proxy", "neither:nginx.service", "--json"),
    )
    assert done.returncode == 6, done.stderr
    problems = json.loads(done.stdout)["problems"]
    expected = ["'nobody-by-this-name'", "'nor-by-this'", "'neither'"]
    expected.append("not booted with systemd" if os.geteuid() == 0 else "only root")
    assert [word for word in expected if not any(word in problem for problem in problems)] == []
    assert [os.path.lexists(path) for path in MADE] == before


def test_people_get_it_as_a_list(fresh: Installer) -> None:
    done = fresh.run("install", "--loopback-user", "derek@example.com", "--user", "root", "--dry-run")
    assert done.returncode == 6
    assert "nothing was changed, for this stands against it:\n  - " in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--user", "root"], "say who your local programs shall be"),
        (["--loopback-user", "derek@example.com"], "say whose OpenClaw it is"),
    ],
)
def test_what_is_missing_is_asked_for(fresh: Installer, options: list[str], message: str) -> None:
    done = fresh.run("install", *options)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as undoing does")
@pytest.mark.skipif(Path("/opt/gatepass/manifest.json").exists(), reason="gatepass is installed on this machine")
def test_undoing_what_was_never_done_is_no_error(fresh: Installer) -> None:
    for options in ([], [], ["--dry-run"]):
        done = fresh.run("install", "--undo", *options)
        assert done.returncode == 0, done.stderr
        assert "there is nothing to undo" in done.stdout
        assert done.stdout.endswith("\nnothing to do\n")
