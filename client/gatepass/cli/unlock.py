"""`gatepass unlock`: end the lock."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

from gatepass.cli.enforcement import CONFIRMED, reach, show
from gatepass.cli.lists import count
from gatepass.cli.manners import guard
from gatepass.cli.options import add_json, admin_client_of, command_parser
from gatepass.oversight import Enforced

_PURPOSE: Final = f"""\
End the lock. Tokens from before it that have not ended meanwhile are accepted again, and sessions have to log in anew;
to cut those tokens off as well, 'gatepass revoke --all' before.

{CONFIRMED}"""

_EXAMPLES: Final = """\
  sudo gatepass revoke --all && sudo gatepass unlock"""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parser = command_parser("unlock", _PURPOSE, _EXAMPLES)
    add_json(parser)
    options = parser.parse_args(arguments)
    return guard(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    with admin_client_of(options) as client:
        enforced = client.unlock()
    return show(options, enforced, _sentence(enforced))


def _sentence(enforced: Enforced) -> str:
    if not enforced.gateways:
        return f"unlocked; {reach(enforced)}"
    return f"unlocked: tokens are issued again, and accepted at {count(enforced.acted, 'gateway')}"
