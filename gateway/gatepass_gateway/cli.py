"""The command `gatepass-gateway`: reads options and runs the proxy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from gatepass.daemon.command import DONE, daemon_parser, end, guard, serve

if TYPE_CHECKING:
    from gatepass_gateway.config import Settings

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


def program() -> NoReturn:
    """What `gatepass-gateway` starts: the command, as a process."""
    end(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = daemon_parser("gatepass-gateway", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("--config", metavar="FILE", type=Path, required=True, help="the configuration, TOML")
    options = parser.parse_args(arguments)
    return guard("gatepass-gateway", "gateway", _NEEDED, lambda: _command(options))


def _command(options: argparse.Namespace) -> int:
    # Imported late, so that --help works and a missing extra is explained.
    from gatepass.daemon.process import harden  # noqa: PLC0415
    from gatepass.daemon.systemd import Manager  # noqa: PLC0415
    from gatepass_gateway.config import load  # noqa: PLC0415
    from gatepass_gateway.server import run  # noqa: PLC0415

    manager = Manager.from_environment()
    harden()
    with manager.slow_to_fail():
        settings = load(options.config)
        if options.check:
            print(f"{settings.source}: no fault found; identities: {len(settings.policy.users)}")
            return DONE
        return serve(options, run, settings, _ready, manager.inherited, manager.notifier)


def _ready(settings: Settings) -> None:
    import structlog  # noqa: PLC0415

    host, port = settings.upstream.address
    structlog.stdlib.get_logger().info(
        "ready",
        listen=" ".join(f"{address}:{number}" for address, number in settings.listen),
        upstream=f"{host}:{port}",
        keys=str(settings.jwks_file or settings.broker_socket),
    )
