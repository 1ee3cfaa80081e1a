"""`gatepass` without a command: what there is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

import gatepass
from gatepass.cli import COMMANDS
from gatepass.cli.manners import USAGE, put, tell

_STATUSES: Final = """\
exit statuses:
  0  done                       10  token: malformed
  1  failure                    11  token: unknown key
  2  usage                      12  token: bad signature
  3  denied, or locked          13  token: of another broker
  4  try later                  14  token: for another audience
  5  broker unreachable         15  token: expired
  6  misconfigured              16  token: not yet valid
                                17  token: of another machine or boot
                                18  token: of another user
                                19  token: revoked
                                20  token: of another systemd unit
                                21  token: its process has ended
  'gatepass run' returns the status of its command, 125 if it failed itself, 126 if the command could
  not be executed, 127 if it was not found, 128+N if signal N ended it. Ctrl-C ends any command with 130.

environment:
  GATEPASS_SOCKET  the broker's socket (default: your own broker's in $XDG_RUNTIME_DIR/gatepass/ if it
                   is there, else /run/gatepass/broker.sock; for what takes root /run/gatepass/admin.sock)
"""


def main(arguments: Sequence[str]) -> int:
    """Print the overview or the version, or say what is wrong with the command line."""
    if arguments[:1] == ["--version"]:
        put(f"gatepass {gatepass.__version__}")
        return 0
    if arguments[:1] in (["--help"], ["-h"], ["help"]):
        put(_overview())
        return 0
    tell(f"{_problem(arguments)}; see 'gatepass --help'")
    return USAGE


def _problem(arguments: Sequence[str]) -> str:
    if not arguments:
        return "a command is needed"
    longer = [name for name in COMMANDS if name.startswith(f"{arguments[0]} ")]
    if longer:
        return f"after '{arguments[0]}' one of its commands is needed: {', '.join(name.split()[1] for name in longer)}"
    return f"there is no command '{arguments[0]}'"


def _overview() -> str:
    commands = "\n".join(f"  {name:<16} {purpose}" for name, purpose in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="gatepass",
        usage="gatepass COMMAND [options]\n       gatepass COMMAND --help\n       gatepass --version",
        description="Short-lived identity for local programs: ask the gatepass broker for a token, and use it.",
        epilog=f"commands:\n{commands}\n\n{_STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    return parser.format_help().rstrip()
