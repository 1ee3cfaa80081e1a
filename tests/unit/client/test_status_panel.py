"""`gatepass status` as a person at a terminal sees it."""

from __future__ import annotations

import io

from rich.console import Console

from gatepass.cli.status_panel import show
from gatepass.replies import KeyStatus, Status

STATUS = Status(
    version="1.2.3",
    issuer="gatepass:host",
    state="running",
    started=1_700_000_000,
    uptime=90_061,
    keys=(KeyStatus("new-key", 1_700_086_400, None), KeyStatus("old-key", 1_700_000_000, 1_700_003_600)),
    issued=12_345,
    refused=6,
    connections=2,
    configured=1_700_000_000,
    gateways=3,
)


def shown(status: Status, place: str) -> str:
    out = io.StringIO()
    show(status, place, Console(file=out, width=100, color_system=None))
    return out.getvalue()


def test_everything_that_a_person_asks_is_there() -> None:
    text = shown(STATUS, "/run/gatepass/broker.sock")
    for part in (
        "gatepass:host",
        "running",
        "/run/gatepass/broker.sock",
        "1 day, 1:01:01",
        "12,345 issued",
        "6 requests",
        "gateways     3",
    ):
        assert part in text
    rows = {line.split()[1]: line.split()[2] for line in text.splitlines() if "-key" in line}
    assert rows == {"new-key": "signs", "old-key": "retired"}


def test_a_lock_is_the_first_thing_that_is_seen() -> None:
    assert "locked: nothing is issued or accepted" in shown(STATUS._replace(locked=True), "/x").splitlines()[0]
    assert "locked" not in shown(STATUS, "/x")


def test_what_a_broker_says_is_no_markup() -> None:
    assert "[red]x[/red]" in shown(STATUS._replace(version="[red]x[/red]"), "/x")
