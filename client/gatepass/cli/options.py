"""The command line's grammar, shared by all commands."""

from __future__ import annotations

import argparse
import re
from typing import Final, NoReturn

from gatepass.cli.manners import USAGE, tell
from gatepass.client import DEFAULT_TIMEOUT, Client
from gatepass.paths import admin_socket

_ENDING: Final = "Exit statuses, and what they stand for: gatepass --help"


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that speaks as every other message does."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, where the help is, and exit with 2."""
        # It repeats what was given, which may be a token, and that must not get into a log.
        message = re.sub(r"\S*eyJ\S*", "...", message)
        tell(f"{message}; see '{self.prog} --help'")
        raise SystemExit(USAGE)


def command_parser(command: str, purpose: str, examples: str, *, usage: str | None = None) -> Parser:
    """Return the parser of `gatepass COMMAND` with the options that all commands have."""
    parser = Parser(
        prog=f"gatepass {command}",
        usage=usage,
        description=purpose,
        epilog=f"examples:\n{examples.rstrip()}\n\n{_ENDING}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a script that abbreviates breaks when an option is added
    )
    parser.add_argument("--socket", metavar="PATH", help="the broker's socket (default: $GATEPASS_SOCKET, or found)")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=DEFAULT_TIMEOUT,
        help="how long to wait for the broker, a restart of it included (default: %(default)g)",
    )
    return parser


def add_json(parser: Parser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_wanted(parser: Parser) -> None:
    """Add the options that say which token is wanted. Each defaults to what the broker chooses from the grant."""
    parser.add_argument("--audience", metavar="NAME", help="whom the token is for")
    parser.add_argument("--scope", metavar="SCOPES", help="its scopes, separated by spaces; '' for none")
    parser.add_argument("--ttl", metavar="SECONDS", type=int, help="its life")


def add_binding(parser: Parser, *bindings: str) -> None:
    """Add `--bind`, which takes `bindings`."""
    parser.add_argument(
        "--bind",
        choices=bindings,
        help="what a token is bound to besides this user, where the rule does not demand more already: the systemd "
        "unit that asks for it, or the process; uid for nothing else",
    )


def client_of(options: argparse.Namespace) -> Client:
    """Return the client that the options ask for."""
    return Client(options.socket, options.timeout)


def admin_client_of(options: argparse.Namespace) -> Client:
    """Return the client that the options of a command for administrators ask for."""
    return Client(admin_socket() if options.socket is None else options.socket, options.timeout)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError("must be a number of seconds between 0 and 86400")
    return value
