"""`gatepass verify`: check a token. It is read from stdin or a file, since argv is visible to every user."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from typing import Final

from gatepass.cli.manners import DONE, USAGE, CommandError, guard, put_json, put_table, tell
from gatepass.cli.options import add_json, client_of, command_parser
from gatepass.replies import VerifiedToken

MAX_INPUT: Final = 65_536
"""Bytes that are read in search of a token, which is far shorter."""

_EXAMPLES: Final = """\
  gatepass token | gatepass verify
  gatepass verify --audience openclaw --token-file "$GATEPASS_TOKEN_FILE"
  gatepass verify --json <token | jq .claims"""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parser = command_parser(
        "verify", "Check a token, read from standard input, as if this process showed it to a gateway.", _EXAMPLES
    )
    parser.add_argument("--audience", metavar="NAME", help="whom it must be for (default: your first audience)")
    parser.add_argument("--token-file", metavar="FILE", help="read it from FILE")
    add_json(parser)
    options = parser.parse_args(arguments)
    return guard(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    token = _read_token(options.token_file)
    with client_of(options) as client:
        verified = client.verify(token, options.audience)
    if options.json:
        put_json(verified._asdict())
    else:
        put_table(_rows(verified))
    return DONE


def _read_token(file: str | None) -> str:
    if file is None and os.isatty(0):
        tell("reading the token from the terminal; end it with Enter and Ctrl-D")
    try:
        # The descriptor 0 and not `sys.stdin`, which is None where it is closed.
        with open(0 if file is None else file, "rb", closefd=file is not None) as source:
            data = source.read(MAX_INPUT)
    except OSError as error:
        raise CommandError(f"the token cannot be read from {file or 'standard input'}: {error.strerror}") from error
    token = data.decode("utf-8", "replace").strip()
    if not token:
        raise CommandError(f"there is no token in {file or 'standard input'}; see 'gatepass verify --help'", USAGE)
    return token


def _rows(verified: VerifiedToken) -> dict[str, object]:
    return {
        "subject": verified.subject,
        "audience": verified.audience,
        "scope": verified.scope or "none",
        "id": verified.claims.get("jti", "unknown"),
        "expires": f"in {max(0, verified.expires_at - int(time.time()))} s",
    }
