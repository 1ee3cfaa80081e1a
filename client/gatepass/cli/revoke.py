"""`gatepass revoke`: cut off what was issued so far, and end its sessions."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Final

from gatepass.cli.accounts import find_account
from gatepass.cli.enforcement import CONFIRMED, reach, show
from gatepass.cli.manners import guard
from gatepass.cli.options import Parser, add_json, admin_client_of, command_parser
from gatepass.revocations import Cut

_PURPOSE: Final = f"""\
Cut off tokens that were issued so far: they are accepted no more, and the sessions that logged in with them end. What
is asked for afterwards is issued as before: to keep somebody out, take their rule away first, or 'gatepass lock'.

{CONFIRMED}"""

_EXAMPLES: Final = """\
  sudo gatepass revoke --user derek
  sudo gatepass revoke --unit openclaw.service
  sudo gatepass revoke --unit user@1000.service/tui.scope   # a unit of a user's own manager
  sudo gatepass revoke --jti ID                             # from 'gatepass sessions'
  sudo gatepass revoke --all --json | jq .ended"""

UNIT_KINDS: Final = (".service", ".scope", ".socket", ".mount", ".swap")
"""Units that have processes of their own (systemd.unit(5)); a slice has none."""

_ID_WITH_DASH: Final = re.compile(r"-[A-Za-z0-9_-]{21}")


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    options = _command_line().parse_args(_with_ids(arguments))
    return guard(lambda: _run(options))


def _command_line() -> Parser:
    parser = command_parser("revoke", _PURPOSE, _EXAMPLES)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--jti", metavar="ID", type=_token_id, help="the token of this id, which is not the token itself")
    what.add_argument("--user", metavar="USER", help="all of this local user, by name or uid")
    what.add_argument("--unit", metavar="UNIT", type=_unit, help="all that this systemd unit asked for")
    what.add_argument("--identity", metavar="NAME", type=_text, help="all of this loopback user, whoever asked")
    what.add_argument("--all", action="store_true", help="all there are")
    add_json(parser)
    return parser


def _with_ids(arguments: Sequence[str]) -> list[str]:
    """Write `--jti ID` as `--jti=ID`: one id of 64 begins with a dash, and argparse would take it for an option."""
    written: list[str] = []
    for argument in arguments:
        if written[-1:] == ["--jti"] and _ID_WITH_DASH.fullmatch(argument):
            written[-1] += f"={argument}"
        else:
            written.append(argument)
    return written


def _run(options: argparse.Namespace) -> int:
    by, value = _chosen(options)
    with admin_client_of(options) as client:
        enforced = client.revoke(by, value)
    return show(
        options,
        enforced,
        f"revoked: {reach(enforced)}; whoever has a rule can ask for a new token: remove the rule, or 'gatepass lock', "
        "to keep them out",
    )


def _chosen(options: argparse.Namespace) -> tuple[Cut, str]:
    if options.all:
        return Cut.ALL, ""
    if options.user is not None:
        return Cut.UID, str(find_account(options.user).uid)
    for cut, value in ((Cut.JTI, options.jti), (Cut.UNIT, options.unit), (Cut.IDENTITY, options.identity)):
        if value is not None:
            return cut, value
    raise AssertionError("the parser demands one")


def _text(text: str) -> str:
    if not text or not text.isprintable():
        raise argparse.ArgumentTypeError("must not be empty, nor have control characters")
    return text


def _token_id(text: str) -> str:
    """Take an id, and refuse a token without repeating it: it is in this command line, and should not be in a log."""
    if "." in text:
        raise argparse.ArgumentTypeError(
            "takes a token's id and no token, which every user could read in a command line: "
            "'gatepass verify <FILE' tells the id"
        )
    return _text(text)


def _unit(text: str) -> str:
    if not text.endswith(UNIT_KINDS):
        kinds = ", ".join(UNIT_KINDS)
        raise argparse.ArgumentTypeError(f"must be a unit's whole name, which ends in one of {kinds}")
    if "*" in text:
        raise argparse.ArgumentTypeError("takes the name of one unit and no pattern")
    return _text(text)
