"""`gatepass lock`: nothing is issued or accepted, until `gatepass unlock`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

from gatepass.cli.enforcement import CONFIRMED, reach, show
from gatepass.cli.manners import guard
from gatepass.cli.options import add_json, admin_client_of, command_parser

_PURPOSE: Final = f"""\
Issue nothing and let nobody in until 'gatepass unlock', over restarts of everything, and end every live session: those
with a token, and local operators' logins as a device or with a bootstrap token. People who come through your reverse
proxy are not meant. Rules, tokens and keys stay as they are.

{CONFIRMED}"""

_EXAMPLES: Final = """\
  sudo gatepass lock
  gatepass status --json | jq .locked"""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parser = command_parser("lock", _PURPOSE, _EXAMPLES)
    add_json(parser)
    options = parser.parse_args(arguments)
    return guard(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    with admin_client_of(options) as client:
        enforced = client.lock()
    return show(options, enforced, f"locked: nothing is issued or accepted until 'gatepass unlock'; {reach(enforced)}")
