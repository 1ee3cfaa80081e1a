"""`gatepass token`: print a token."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Final

from gatepass.cli.manners import DONE, guard, put, put_json, tell
from gatepass.cli.options import add_binding, add_json, add_wanted, client_of, command_parser
from gatepass.messages import Binding

_EXAMPLES: Final = """\
  # as a header for curl, on its standard input: what is in a command line, every user can read
  printf 'Authorization: Bearer %s' "$(gatepass token)" | curl -H @- http://127.0.0.1:18789/v1/models
  gatepass token --audience openclaw --scope operator.read --ttl 60
  gatepass token --bind unit   # refused from anywhere but the systemd unit that this runs in
  gatepass token --json | jq -r .expires_in"""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parser = command_parser("token", "Print a token for this user, and nothing else.", _EXAMPLES)
    add_wanted(parser)
    add_binding(parser, *Binding)
    add_json(parser)
    options = parser.parse_args(arguments)
    if options.bind == Binding.PROCESS:
        parser.error("a token bound to this process would end with it: 'gatepass run --bind process -- CMD' stays")
    return guard(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    with client_of(options) as client:
        issued = client.issue(options.audience, options.scope, options.ttl, options.bind)
    if options.json:
        put_json(issued._asdict())
    else:
        put(issued.token)
    if os.isatty(1):
        # Printed all the same: a person who asks for a token wants to see it, and it is of use to this user only.
        tell(f"this token stays in your terminal's scrollback; it ends in {issued.expires_in} s")
    return DONE
