"""`gatepass run -- CMD`: run a command with a token that stays fresh."""

from __future__ import annotations

import argparse
import os
import resource
import threading
import time
from collections.abc import Sequence
from typing import Final, NoReturn

from gatepass.cli.child import run_child
from gatepass.cli.manners import CommandError, guard, tell
from gatepass.cli.options import Parser, add_binding, add_wanted, client_of, command_parser
from gatepass.cli.token_file import TokenFile
from gatepass.errors import GatepassError
from gatepass.messages import Binding
from gatepass.paths import SOCKET_VARIABLE
from gatepass.source import Briefly, TokenSource

TOKEN_FILE_VARIABLE: Final = "GATEPASS_TOKEN_FILE"

OWN_FAILURE: Final = 125
"""The status for a failure before the command runs, as of env(1) and timeout(1): no other can be told from its own."""

LONGEST_NAP: Final = 15.0
"""Seconds. A thread's sleep does not count the time that the machine is suspended, a token's life does."""

SHORTEST_NAP: Final = 0.2
"""Seconds: a token without life must not make a busy loop."""

PAUSE: Final = 5.0
"""Seconds between attempts once the token has ended."""

_PURPOSE: Final = """\
Run CMD with a token that is renewed for as long as CMD runs. The token is in the file that $GATEPASS_TOKEN_FILE
names: read it anew for each use. It is neither in the command line nor in the environment, and no file system
holds it; only this user and root can read it. Signals are passed on to CMD.
If CMD leaves this user or this pid namespace (a container), it cannot open the file: use --env there."""

_EXAMPLES: Final = """\
  gatepass run -- sh -c 'gatepass verify --token-file "$GATEPASS_TOKEN_FILE"'
  gatepass run --audience openclaw --scope operator.read -- ./report.py
  gatepass run --bind process -- ./report.py   # the token ends with this 'gatepass run'
  OPENCLAW_GATEWAY_URL=ws://127.0.0.1:18789 gatepass run --env OPENCLAW_GATEWAY_TOKEN -- openclaw cron list"""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parser = _command_line()
    options = parser.parse_args(arguments)
    options.command = options.command[options.command[:1] == ["--"] :]
    if not options.command:
        parser.error("a command to run is needed")
    if options.env is not None and (not options.env or "=" in options.env):
        parser.error("--env needs the name of a variable")
    return guard(lambda: _run(options))


def _command_line() -> Parser:
    parser = command_parser("run", _PURPOSE, _EXAMPLES, usage="gatepass run [options] -- CMD [ARG ...]")
    add_wanted(parser)
    add_binding(parser, *Binding)
    parser.add_argument(
        "--env",
        metavar="NAME",
        help="also put the first token into the environment variable NAME: every process of this user can read it "
        "there, so can whatever CMD starts, and it is not renewed",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _run(options: argparse.Namespace) -> int:
    client = client_of(options)
    source = TokenSource(
        Briefly(client), audience=options.audience, scope=options.scope, ttl=options.ttl, binding=options.bind
    )
    try:
        token = source.get()
    except GatepassError as error:
        raise CommandError(error.message, OWN_FAILURE) from error
    with TokenFile(token) as file:
        environment = {**os.environ, SOCKET_VARIABLE: client.socket, TOKEN_FILE_VARIABLE: file.path}
        if options.env is not None:
            environment[options.env] = token
        return run_child(options.command, environment, when_started=lambda: _guard_and_renew(source, file))


def _guard_and_renew(source: TokenSource, file: TokenFile) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the token; the child has its own limit
    threading.Thread(target=_renew, args=(source, file), name="renew", daemon=True).start()


def _renew(source: TokenSource, file: TokenFile) -> NoReturn:
    """Keep the token in `file` fresh, and tell of each new reason why that fails."""
    told = None
    while True:
        time.sleep(min(max(source.due_in(), SHORTEST_NAP), LONGEST_NAP))
        try:
            file.replace(source.get())
            told = None
        except GatepassError as error:
            if error.code is not told:
                tell(f"the token could not be renewed: {error.message}")
            told = error.code
            time.sleep(max(PAUSE, error.retry_after or 0))
