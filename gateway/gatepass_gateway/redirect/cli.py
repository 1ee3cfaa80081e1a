"""The command `gatepass-redirect`: reads options and holds the rules."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from gatepass.daemon.addresses import REDIRECTED_TO
from gatepass.daemon.command import DONE, daemon_parser, end, guard

if TYPE_CHECKING:
    from gatepass.daemon.systemd import Notifier
    from gatepass_gateway.redirect.rules import RedirectSettings

_NEEDED: Final = ("msgspec", "structlog")

_DESCRIPTION: Final = """\
Lead every local program that dials the gateway's own port to the proxy, and let nobody but the proxy through.

Holds a table of nftables rules that belongs to this process, and watches over a second one, the guard, which
stays when this process ends: local programs are refused then. Takes CAP_NET_ADMIN, and nothing else."""

_EXAMPLES: Final = f"""\
a configuration is the proxy's, with:
  [listen]
  port = 789                            # where the proxy listens
  addresses = {json.dumps(REDIRECTED_TO)}
  [upstream]
  port = 18789                          # OpenClaw's own, which local programs dial
  [redirect]
  proxy_user = "gatepass-gateway"       # who the proxy runs as

examples:
  gatepass-redirect --config /etc/gatepass/gateway.toml --print
      show the rules
  gatepass-redirect --config /etc/gatepass/gateway.toml
      hold them until SIGTERM or SIGINT
  gatepass-redirect --remove
      take away the guard that the last one has left

exit codes:
  0 done, 1 failure, 2 wrong use, 6 misconfigured
"""


def program() -> NoReturn:
    """What `gatepass-redirect` starts: the command, as a process."""
    end(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = daemon_parser("gatepass-redirect", _DESCRIPTION, _EXAMPLES, has_loop=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE", type=Path, help="the proxy's configuration, TOML")
    what.add_argument("--remove", action="store_true", help="remove the guard and exit")
    parser.add_argument("--print", action="store_true", help="show the rules and exit; takes no privilege")
    options = parser.parse_args(arguments)
    if options.remove and (options.check or options.print):
        parser.error("--remove goes alone")
    return guard("gatepass-redirect", "gateway", _NEEDED, lambda: _command(options))


def _command(options: argparse.Namespace) -> int:
    # Imported late, so that --help works and a missing extra is explained.
    from gatepass.daemon.process import harden  # noqa: PLC0415
    from gatepass.daemon.systemd import Manager  # noqa: PLC0415
    from gatepass_gateway.redirect.rules import both_tables  # noqa: PLC0415
    from gatepass_gateway.redirect.settings import load  # noqa: PLC0415
    from gatepass_gateway.redirect.tables import remove_guard  # noqa: PLC0415

    harden()
    if options.remove:
        remove_guard()
        return DONE
    manager = Manager.from_environment()
    with manager.slow_to_fail():
        settings = load(options.config)
        if options.check:
            print(f"{options.config}: no fault found; {_summary(settings)}")
        elif options.print:
            print(both_tables(settings), end="")
        else:
            _hold(settings, options, manager.notifier)
    return DONE


def _hold(settings: RedirectSettings, options: argparse.Namespace, notifier: Notifier) -> None:
    import structlog  # noqa: PLC0415

    from gatepass.daemon.logs import configure_logs  # noqa: PLC0415
    from gatepass_gateway.redirect.tables import Tables  # noqa: PLC0415
    from gatepass_gateway.redirect.watch import Changes, Signals, watch  # noqa: PLC0415

    configure_logs(options.log_format)
    signals = Signals()
    with Tables(settings) as tables:
        changes = Changes()
        structlog.get_logger().info("ready", gateway_port=settings.gateway_port, proxy_port=settings.proxy_port)
        notifier.ready(_summary(settings))
        try:
            watch(tables, changes, signals, notifier)
        finally:
            notifier.stopping()


def _summary(settings: RedirectSettings) -> str:
    return f"local connections to port {settings.gateway_port} go to the proxy on port {settings.proxy_port}"
