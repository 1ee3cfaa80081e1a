"""How every command behaves: what goes where, and which exit status says what.

stdout carries the result and nothing else; stderr carries sentences for people, each with cause and cure, and never
a token.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from gatepass.cli.descriptors import hold_standard_descriptors, write_all
from gatepass.errors import (
    ConfigurationError,
    ErrorCode,
    GatepassError,
    TokenError,
    TryLaterError,
    UnreachableError,
)

DONE: Final = 0
FAILURE: Final = 1
USAGE: Final = 2
DENIED: Final = 3
TRY_LATER: Final = 4
UNREACHABLE: Final = 5
MISCONFIGURED: Final = 6
INTERRUPTED: Final = 130

TOKEN_FAULTS: Final = {
    ErrorCode.TOKEN_MALFORMED: 10,
    ErrorCode.TOKEN_UNKNOWN_KEY: 11,
    ErrorCode.TOKEN_BAD_SIGNATURE: 12,
    ErrorCode.TOKEN_WRONG_ISSUER: 13,
    ErrorCode.TOKEN_WRONG_AUDIENCE: 14,
    ErrorCode.TOKEN_EXPIRED: 15,
    ErrorCode.TOKEN_NOT_YET_VALID: 16,
    ErrorCode.TOKEN_WRONG_BOOT: 17,
    ErrorCode.TOKEN_WRONG_UID: 18,
    ErrorCode.TOKEN_REVOKED: 19,
    ErrorCode.TOKEN_WRONG_UNIT: 20,
    ErrorCode.TOKEN_PROCESS_ENDED: 21,
}

_STATUS_OF_CLASS: Final[dict[type[GatepassError], int]] = {
    TryLaterError: TRY_LATER,
    UnreachableError: UNREACHABLE,
    ConfigurationError: MISCONFIGURED,
}


class CommandError(Exception):
    """A command cannot go on for a reason of its own: the sentence, and the exit status."""

    def __init__(self, message: str, status: int = FAILURE) -> None:
        super().__init__(message)
        self.status = status


def exit_status(error: GatepassError) -> int:
    """Return the exit status that stands for `error`."""
    if isinstance(error, TokenError):
        return TOKEN_FAULTS.get(error.code, FAILURE)
    if error.code in (ErrorCode.DENIED, ErrorCode.OPERATION_NOT_ALLOWED, ErrorCode.LOCKED):
        return DENIED
    return _STATUS_OF_CLASS.get(type(error), FAILURE)


def guard(command: Callable[[], int]) -> int:
    """Run `command` and return its exit status; an error becomes a sentence on stderr and a status."""
    hold_standard_descriptors()
    try:
        return command()
    except GatepassError as error:
        tell(error.message)
        return exit_status(error)
    except CommandError as error:
        tell(str(error))
        return error.status
    except KeyboardInterrupt:
        return INTERRUPTED


def tell(sentence: str) -> None:
    """Say something to a person. A stderr that cannot be written to is no reason to fail."""
    with suppress(OSError):
        write_all(2, f"gatepass: {plain(sentence)}\n".encode(errors="backslashreplace"))


def put(text: str) -> None:
    """Write the result and a newline to stdout."""
    if sys.stdout is None:
        raise CommandError("the result has nowhere to go: standard output is closed")
    try:
        write_all(1, f"{text}\n".encode(errors="backslashreplace"))
    except OSError as error:
        raise CommandError(f"the result could not be written to standard output: {error.strerror}") from error


def put_json(value: dict[str, Any]) -> None:
    """Write the result as one JSON object on one line."""
    import json  # noqa: PLC0415 - not every command needs it, and all pay for it

    put(json.dumps(value, ensure_ascii=False))


def put_table(rows: dict[str, object]) -> None:
    """Write the result as lines of a name and a value."""
    width = max(map(len, rows))
    put("\n".join(f"{name:<{width}}  {plain(str(value))}".rstrip() for name, value in rows.items()))


def plain(text: str) -> str:
    """Return `text` on one line, and with nothing in it that a terminal obeys: some of it is of others' making."""
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
