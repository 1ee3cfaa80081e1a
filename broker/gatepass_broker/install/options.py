"""The command line of `gatepass-broker install`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gatepass_broker.install.request import Request

_DESCRIPTION: Final = """\
Put gatepass on this machine as services of systemd, or bring them up to date; or take them off again. Run it as root,
from a virtual environment of the system's Python in which gatepass is installed: what is there is copied to
/opt/gatepass, so the environment is not needed any more afterwards. Nothing is fetched from a network.

With --openclaw-user, OpenClaw's configuration is changed too (by 'gatepass openclaw setup', as that user), and
whatever local programs send to OpenClaw's port is led to the gatepass proxy in the kernel. Without it there is a
broker alone, for the accounts that --user names.

What was said once is kept: to upgrade, run it from the new environment without options. Broker and proxy are restarted
then, and their sockets stay, so clients wait for a moment and lose nothing. The redirect, and with it OpenClaw, is
restarted only when its own code or rules have changed."""

_EXAMPLES: Final = """\
examples:
  gatepass-broker install --loopback-user derek@example.com --openclaw-user derek --dry-run
      show each step of an installation in front of derek's OpenClaw; without --dry-run, do it
  gatepass-broker install --loopback-user ci@example.com --openclaw-user openclaw --openclaw-unit openclaw.service
      in front of an OpenClaw that is a system unit
  gatepass-broker install --undo
      put everything back as it was, but for the journal in /var/lib/gatepass (--purge removes that too)

exit codes:
  0 done, 1 failure, or something could not be undone, 2 wrong use, 6 misconfigured: nothing was changed,
  130 interrupted from the keyboard
"""

_WITH_UNDO: Final = ("purge", "discard_changes")


def parser_of(prog: str) -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dry-run", action="store_true", help="show each step, and do none")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    _add_identity(parser)
    _add_openclaw(parser)
    _add_undo(parser)
    return parser


def check_undo(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with 2 where options do not go together."""
    if options.undo and (said := [name for name in _WANTED if getattr(options, name) not in (None, [])]):
        parser.error(f"--undo takes back what was installed; {_option(said[0])} has no part in it")
    for name in _WITH_UNDO:
        if getattr(options, name) and not options.undo:
            parser.error(f"{_option(name)} goes with --undo")


def check_request(parser: argparse.ArgumentParser, options: argparse.Namespace, request: Request) -> None:
    """Exit with 2 where something is missing in `request`, which has what was said earlier too."""
    if request.loopback_user is None:
        parser.error("say who your local programs shall be: --loopback-user derek@example.com")
    if not request.accounts:
        parser.error("say whose OpenClaw it is, --openclaw-user ACCOUNT, or who gets tokens, --user ACCOUNT")
    said = [name for name in _WITH_OPENCLAW if getattr(options, name) is not None]
    if said and request.openclaw_user is None:
        parser.error(f"{_option(said[0])} goes with --openclaw-user")


def request_of(options: argparse.Namespace) -> Request:
    """Return what the options say. Raise `ConfigurationError`."""
    from gatepass_broker.install.request import Request, reverse_proxy, unit_name  # noqa: PLC0415 - needs an extra

    return Request(
        loopback_user=options.loopback_user,
        users=tuple(options.user),
        openclaw_user=options.openclaw_user,
        openclaw_unit=unit_name(options.openclaw_unit) if options.openclaw_unit else None,
        manager=options.manager,
        openclaw=options.openclaw,
        openclaw_config=options.openclaw_config,
        openclaw_state_dir=options.openclaw_state_dir,
        reverse_proxies=None if options.reverse_proxy is None else tuple(map(reverse_proxy, options.reverse_proxy)),
        port=options.port,
    )


def _add_identity(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who gets which identity")
    group.add_argument("--loopback-user", metavar="NAME", help="who local programs are to OpenClaw")
    group.add_argument(
        "--user",
        metavar="ACCOUNT",
        action="append",
        default=[],
        help="an account whose programs get tokens, besides OpenClaw's; may be repeated",
    )


def _add_openclaw(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("OpenClaw")
    group.add_argument("--openclaw-user", metavar="ACCOUNT", help="the account that runs OpenClaw")
    group.add_argument("--openclaw-unit", metavar="UNIT", help="its unit (default: openclaw-gateway.service)")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--system",
        dest="manager",
        action="store_const",
        const="system",
        help="the unit is the system's (default: if there is one of that name)",
    )
    which.add_argument(
        "--person", dest="manager", action="store_const", const="person", help="the unit is that account's own"
    )
    group.add_argument("--openclaw", metavar="PATH", help="its command (default: found as the unit finds it)")
    group.add_argument("--openclaw-config", metavar="PATH", help="OPENCLAW_CONFIG_PATH (default: as its unit says)")
    group.add_argument("--openclaw-state-dir", metavar="DIR", help="OPENCLAW_STATE_DIR (default: as its unit says)")
    proxies = group.add_mutually_exclusive_group()
    proxies.add_argument(
        "--reverse-proxy",
        metavar="USER[:UNIT]",
        action="append",
        help="a reverse proxy on this machine, whose identity header counts, as www-data:nginx.service; repeatable",
    )
    proxies.add_argument(
        "--no-reverse-proxy",
        dest="reverse_proxy",
        action="store_const",
        const=(),
        help="there is none any more: whoever was named counts no longer",
    )
    group.add_argument("--port", type=_port, help="the port of the gatepass proxy (default: 789)")


def _add_undo(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("taking it off again")
    group.add_argument("--undo", action="store_true", help="remove everything that was made, and nothing else")
    group.add_argument("--purge", action="store_true", help="with --undo: the journal too")
    group.add_argument(
        "--discard-changes",
        action="store_true",
        help="with --undo: lose what was changed in OpenClaw's configuration since it was set up",
    )


_WITH_OPENCLAW: Final = (
    *("openclaw_unit", "manager", "openclaw", "openclaw_config", "openclaw_state_dir", "reverse_proxy", "port"),
)
_WANTED: Final = ("loopback_user", "user", "openclaw_user", *_WITH_OPENCLAW)


_SPELT: Final = {"manager": "--system or --person", "reverse_proxy": "--reverse-proxy or --no-reverse-proxy"}


def _option(name: str) -> str:
    return _SPELT.get(name, f"--{name.replace('_', '-')}")


def _port(text: str) -> int:
    port = int(text) if text.isdecimal() else 0
    if not 0 < port < 65_536:
        raise argparse.ArgumentTypeError("must be a number between 1 and 65535")
    return port
