"""`gatepass status` on a terminal, where `rich` is installed."""

from __future__ import annotations

import time
from datetime import timedelta

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gatepass.replies import KeyStatus, Status


def show(status: Status, place: str, console: Console | None = None) -> None:
    """Show the broker's status in a panel. `console` is the terminal's, unless a test brings another."""
    state = "locked: nothing is issued or accepted" if status.locked else status.state
    color = "red" if status.locked else "green" if status.state == "running" else "yellow"
    title = Text.assemble(("● ", color), (status.issuer, "bold"), f"  {state}")
    panel = Panel(Group(_facts(status, place), "", _keys(status)), title=title, title_align="left", expand=False)
    (console or Console()).print(panel)


def _facts(status: Status, place: str) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    rows = {
        "socket": place,
        "version": status.version,
        "up for": f"{timedelta(seconds=status.uptime)}, since {_moment(status.started)}",
        "configured": _moment(status.configured),
        "tokens": f"{status.issued:,} issued, {status.refused:,} requests refused",
        "connections": str(status.connections),
        "gateways": "unknown" if status.gateways is None else str(status.gateways),
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))  # as text: what a broker says is no markup
    return table


def _keys(status: Status) -> Table:
    table = Table(title="keys", title_justify="left", title_style="dim", box=None, padding=(0, 2, 0, 0))
    for column in ("id", "state", "until"):
        table.add_column(column, header_style="dim", no_wrap=True)
    for key in status.keys:
        table.add_row(Text(key.kid), *_state(key))
    return table


def _state(key: KeyStatus) -> tuple[Text, str]:
    if key.published_until is None:
        return Text("signs", "green"), _moment(key.signs_until)
    return Text("retired", "dim"), _moment(key.published_until)


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
