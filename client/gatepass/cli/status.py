"""`gatepass status`: how the broker is."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Final

from gatepass.cli.lists import members
from gatepass.cli.manners import DONE, guard, put_json, put_table
from gatepass.cli.options import add_json, client_of, command_parser
from gatepass.replies import KeyStatus, Status

_EXAMPLES: Final = """\
  gatepass status
  gatepass status --json | jq .uptime
  gatepass status --timeout 30 >/dev/null   # wait for a broker that is being started"""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parser = command_parser("status", "Show how the broker is.", _EXAMPLES)
    add_json(parser)
    options = parser.parse_args(arguments)
    return guard(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    with client_of(options) as client:
        status, place = client.status(), client.socket
    if options.json:
        put_json({**members(status), "socket": place})
    elif sys.stdout.isatty() and find_spec("rich"):
        # The one command that is for looking at: `pip install 'gatepass[rich]'` makes it worth it.
        import_module("gatepass.cli.status_panel").show(status, place)
    else:
        put_table(_rows(status, place))
    return DONE


def _rows(status: Status, place: str) -> dict[str, object]:
    return {
        "broker": f"{status.issuer}, {status.state} at {place}",
        "version": status.version,
        "up": f"{status.uptime} s, since {_date(status.started)}",
        "configured": _date(status.configured),
        "issued": status.issued,
        "refused": status.refused,
        "connections": status.connections,
        "gateways": "unknown" if status.gateways is None else status.gateways,
        "locked": "yes: nothing is issued or accepted until 'gatepass unlock'" if status.locked else "no",
        "keys": ", ".join(map(_key, status.keys)) or "none",
    }


def _key(key: KeyStatus) -> str:
    if key.published_until is not None:
        return f"{key.kid[:8]} (retired, published until {_date(key.published_until)})"
    return f"{key.kid[:8]} (signs until {_date(key.signs_until)})"


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds))
