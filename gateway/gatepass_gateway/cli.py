"""The command `gatepass-gateway`: reads options and runs the proxy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gatepass.errors import ConfigurationError

if TYPE_CHECKING:
    from gatepass_gateway.config import Settings

DONE: Final = 0
FAILURE: Final = 1
MISCONFIGURED: Final = 6

_NEEDED: Final = ("anyio", "cryptography", "h11", "msgspec", "structlog")

_DESCRIPTION: Final = """\
Stand in front of a gateway that runs in trusted-proxy mode (OpenClaw), on the port that local programs dial.

A request or WebSocket that brings a gatepass token goes on as the token's user; everything else goes on
without identity, and nothing that a client writes can give it one."""

_EXAMPLES: Final = """\
a configuration:
  [listen]
  port = 18789                      # the port that clients dial: gateway.port in OpenClaw's configuration
  [upstream]
  port = 18790                      # the port that OpenClaw listens on: openclaw gateway run --port 18790
  user = "derek"                    # who runs OpenClaw; nobody else is believed to be it
  identity_source = "127.7.7.7"     # the only address in OpenClaw's gateway.trustedProxies
  [identity]
  user_header = "x-gatepass-user"   # OpenClaw's trustedProxy.userHeader; better an unguessable name
  [identity.users]
  "derek@example.com" = ["operator.read", "operator.write", "operator.admin"]

examples:
  gatepass-gateway --config ~/.config/gatepass/gateway.toml --check
      say what is wrong with a configuration, and where
  gatepass-gateway --config ~/.config/gatepass/gateway.toml
      serve until SIGTERM or SIGINT

exit codes:
  0 done, 1 failure, 2 wrong use, 6 misconfigured
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        return _fail(f"{', '.join(missing)} is missing; `pip install 'gatepass[gateway]'`", FAILURE)
    try:
        return _command(options)
    except ConfigurationError as error:
        return _fail(error.message, MISCONFIGURED)
    except OSError as error:
        return _fail(f"{error.filename or 'the proxy'}: {error.strerror}", FAILURE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gatepass-gateway",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gatepass-gateway {version('gatepass')}")
    parser.add_argument("--config", metavar="FILE", type=Path, required=True, help="the configuration, TOML")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    parser.add_argument(
        "--loop",
        choices=("auto", "asyncio", "uvloop"),
        default="auto",
        help="event loop (default: uvloop where it is installed)",
    )
    parser.add_argument("--log-format", choices=("logfmt", "json"), default="logfmt", help="form of the log on stderr")
    return parser


def _command(options: argparse.Namespace) -> int:
    # Imported late, so that --help works and a missing extra is explained.
    import anyio  # noqa: PLC0415

    from gatepass.daemon.logs import configure_logs  # noqa: PLC0415
    from gatepass.daemon.process import harden  # noqa: PLC0415
    from gatepass_gateway.config import load  # noqa: PLC0415
    from gatepass_gateway.server import run  # noqa: PLC0415

    harden()
    settings = load(options.config)
    if options.check:
        print(f"{settings.source}: no fault found; identities: {len(settings.policy.users)}")
        return DONE
    installed = find_spec("uvloop") is not None
    if options.loop == "uvloop" and not installed:
        return _fail("uvloop is missing; `pip install 'gatepass[uvloop]'`, or leave out --loop", FAILURE)
    configure_logs(options.log_format)
    anyio.run(run, settings, _ready, backend_options={"use_uvloop": installed and options.loop != "asyncio"})
    return DONE


def _ready(settings: Settings) -> None:
    import structlog  # noqa: PLC0415

    host, port = settings.upstream.address
    structlog.stdlib.get_logger().info(
        "ready",
        listen=" ".join(f"{address}:{number}" for address, number in settings.listen),
        upstream=f"{host}:{port}",
        keys=str(settings.jwks_file or settings.broker_socket),
    )


def _fail(message: str, code: int) -> int:
    print(f"gatepass-gateway: {message}", file=sys.stderr)
    return code
