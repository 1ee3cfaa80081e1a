"""`gatepass openclaw secret`: what OpenClaw runs to get the secret that it logs in with.

It never fails: a provider that fails keeps the gateway from starting, and a person sees `exited with code N` and no
more. Whatever goes wrong, it exits with 0 and answers a secret that cannot log in and carries the reason, which the
gatepass gateway turns into a sentence. So this module needs the standard library only, and what can fail is loaded and
done inside one `try`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Final, NoReturn

from gatepass.cli.descriptors import hold_standard_descriptors, write_all
from gatepass.errors import ErrorCode, GatepassError
from gatepass.openclaw import (
    ASKED_BY_GATEWAY,
    RANDOM_BYTES,
    AskedByGatewayError,
    no_token,
    parse_request,
    response,
)

BUDGET: Final = 2.5
"""Seconds for everything. OpenClaw gives up after 5, of which starting Python takes its part."""

BROKER_SHARE: Final = 2.0
"""Seconds from the start after which the broker is given up: earlier than the budget, so that the reason is known."""

MAX_REQUEST: Final = 1_048_576
"""Bytes; OpenClaw's own limit for an answer."""


class _OutOfTimeError(BaseException):
    """The budget is used up. Not an `Exception`: nobody on the way may take it for a fault of theirs."""


def main(arguments: Sequence[str]) -> int:
    """Answer the request on stdin, and return 0."""
    if arguments[:1] in (["-h"], ["--help"]):
        import_module("gatepass.cli.openclaw_token").command_line().print_help()
        return 0
    ids: list[str] = []
    try:
        with _budget():
            secrets = _secrets(arguments, ids)
    except BaseException as error:  # noqa: BLE001 - even an interrupt gets an answer
        reason, sentence = _reason(error)
        _try_to_write(2, f"gatepass: no token: {sentence}\n".encode(errors="backslashreplace"))
        secrets = {name: no_token(reason, os.urandom(RANDOM_BYTES)) for name in ids}
    _try_to_write(1, response(secrets))
    return 0


def _secrets(arguments: Sequence[str], ids: list[str]) -> dict[str, str]:
    """Fill `ids` with what is asked for, and return one token for all of it. Raises whatever goes wrong."""
    give_up_at = time.monotonic() + BROKER_SHARE
    hold_standard_descriptors()
    ids += _read_request()
    token: str = import_module("gatepass.cli.openclaw_token").token_for_command(arguments, give_up_at)
    return dict.fromkeys(ids, token)


def _read_request() -> tuple[str, ...]:
    """Return the ids in the request. It is complete when it can be read: its sender may keep stdin open."""
    data = b""
    while True:
        chunk = os.read(0, MAX_REQUEST)
        data += chunk
        try:
            return parse_request(data)
        except ValueError:
            if not chunk or len(data) > MAX_REQUEST:
                raise


def _reason(error: BaseException) -> tuple[str, str]:
    """The code that the secret carries, and the sentence for stderr. Never a text that could quote the input."""
    match error:
        case AskedByGatewayError():
            return ASKED_BY_GATEWAY, "what asks is not clearly an OpenClaw command, so it may be the gateway itself"
        case GatepassError():
            return error.code.value, error.message
        case _OutOfTimeError():
            return ErrorCode.TIMEOUT.value, f"it was not to be had within {BUDGET} s"
        case SystemExit():
            return ErrorCode.MISCONFIGURED.value, "the options in OpenClaw's configuration are wrong"
        case ValueError():
            return ErrorCode.MALFORMED.value, "standard input holds no request of OpenClaw's exec-secret protocol"
    return ErrorCode.INTERNAL.value, f"a fault of gatepass, or of how it was installed ({type(error).__name__})"


@contextmanager
def _budget() -> Iterator[None]:
    """Interrupt whatever waits when the budget is used up: stdin, the broker, a file system that hangs."""
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, BUDGET)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _out_of_time(*_: object) -> NoReturn:
    raise _OutOfTimeError


def _try_to_write(descriptor: int, data: bytes) -> None:
    with suppress(OSError):  # nobody is left to be told
        write_all(descriptor, data)
