"""`gatepass whoami`: whom the broker sees, and what it would grant."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

from gatepass.cli.lists import members
from gatepass.cli.manners import DONE, guard, put_json, put_table
from gatepass.cli.options import add_json, client_of, command_parser
from gatepass.replies import Whoami

_EXAMPLES: Final = """\
  gatepass whoami
  gatepass whoami --json | jq -r .grant.identity"""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parser = command_parser("whoami", "Show whom the broker sees in this process, and what it grants.", _EXAMPLES)
    add_json(parser)
    options = parser.parse_args(arguments)
    return guard(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    with client_of(options) as client:
        seen = client.whoami()
    if options.json:
        put_json(members(seen))
    else:
        put_table(_rows(seen))
    return DONE


def _rows(seen: Whoami) -> dict[str, object]:
    rows: dict[str, object] = {
        "uid": _known(seen.uid),
        "gid": _known(seen.gid),
        "groups": " ".join(map(str, seen.groups)) or "none",
        "pid": _known(seen.pid),
        "unit": seen.unit or _known(seen.cgroup and "none"),
        "cgroup": _known(seen.cgroup),
        "broker": seen.issuer,
    }
    if seen.grant is None:
        return {
            **rows,
            "identity": "none: no rule of the broker matches, so tokens are denied; 'gatepass explain' says why",
        }
    return {
        **rows,
        "identity": seen.grant.identity,
        "audiences": " ".join(seen.grant.audiences),
        "scope": seen.grant.scope or "none",
        "longest life": f"{seen.grant.max_ttl} s",
        "binding": seen.grant.binding,
        "reconnect": f"for {seen.grant.reconnect} s" if seen.grant.reconnect else "no",
    }


def _known(value: object) -> object:
    return "unknown" if value is None else value
