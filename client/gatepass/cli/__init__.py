"""The command `gatepass`. Each command is a module of its own, and only the one that was asked for is loaded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

COMMANDS: Final = {
    "token": "print a token",
    "run": "run a command with a token that stays fresh",
    "whoami": "show whom the broker sees, and what it grants",
    "explain": "say how the broker decides on a token, why, and what to change",
    "verify": "check a token",
    "status": "show how the broker is",
    "sessions": "list the sessions at the gateways, or what they left behind",
    "revoke": "cut off what was issued so far, and end its sessions",
    "lock": "issue nothing and let nobody in until 'gatepass unlock'",
    "unlock": "end the lock",
    "openclaw setup": "change OpenClaw's configuration so that its commands log in through gatepass",
    "openclaw check": "say whether OpenClaw and gatepass fit together, and what to do if not",
    "openclaw secret": "answer OpenClaw's question for a secret (its exec-secret protocol)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (default: the process's own arguments) and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for length in (2, 1):
        name = " ".join(arguments[:length])
        if name in COMMANDS and len(arguments) >= length:
            status: int = import_module(f"gatepass.cli.{name.replace(' ', '_')}").main(arguments[length:])
            return status
    overview: int = import_module("gatepass.cli.overview").main(arguments)
    return overview
