"""What the daemons' commands have in common: options, errors and exit codes, and starting the event loop.

Imports nothing that an extra brings, so that `--help` works and a missing extra is explained.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Final, NoReturn

from gatepass import __version__
from gatepass.errors import ConfigurationError, ErrorCode, GatepassError

DONE: Final = 0
FAILURE: Final = 1
MISCONFIGURED: Final = 6
INTERRUPTED: Final = 130
"""As a shell has it for a program that SIGINT has ended."""


def daemon_parser(prog: str, description: str, epilog: str, *, has_loop: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the options that every daemon has; `has_loop` says whether it has an event loop."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{prog} {__version__}")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    if has_loop:
        parser.add_argument(
            "--loop",
            choices=("auto", "asyncio", "uvloop"),
            default="auto",
            help="event loop (default: uvloop where it is installed)",
        )
    parser.add_argument("--log-format", choices=("logfmt", "json"), default="logfmt", help="form of the log on stderr")
    return parser


def guard(prog: str, extra: str, needed: Sequence[str], command: Callable[[], int]) -> int:
    """Return the exit status of `command`; an error, or a package of the extra that is missing, becomes a sentence."""
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        return _fail(prog, f"{', '.join(missing)} is missing; `pip install 'gatepass[{extra}]'`", FAILURE)
    # structlog loads rich wherever it is installed, for tracebacks in colour; of a daemon's start, for which clients
    # wait, that would be a sixth. (None in there: it cannot be imported.)
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    try:
        return command()
    except ConfigurationError as error:
        return _fail(prog, error.message, MISCONFIGURED)
    except GatepassError as error:
        return _fail(prog, error.message, FAILURE)
    except OSError as error:
        return _fail(prog, f"{error.filename or 'the system'}: {error.strerror}", FAILURE)


def serve(options: argparse.Namespace, run: Callable[..., Awaitable[None]], *arguments: Any) -> int:  # noqa: ANN401
    """Run `run(*arguments)` on the event loop that `options` choose, with the log set up. Return the exit status."""
    import anyio  # noqa: PLC0415

    from gatepass.daemon.logs import configure_logs  # noqa: PLC0415

    installed = find_spec("uvloop") is not None
    if options.loop == "uvloop" and not installed:
        raise GatepassError(
            ErrorCode.UNAVAILABLE, "uvloop is missing; `pip install 'gatepass[uvloop]'`, or leave out --loop"
        )
    configure_logs(options.log_format)
    anyio.run(run, *arguments, backend_options={"use_uvloop": installed and options.loop != "asyncio"})
    return DONE


def end(status: int) -> NoReturn:
    """End the process with `status`. What has to be closed was closed by whoever opened it.

    Python itself would first free every object that there is; clients of a service that is restarted wait for that.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(status)


def _fail(prog: str, message: str, code: int) -> int:
    print(f"{prog}: {message}", file=sys.stderr)  # noqa: T201 - this is a command
    return code
