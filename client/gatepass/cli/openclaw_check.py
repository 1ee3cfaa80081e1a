"""`gatepass openclaw check`: whether OpenClaw, its configuration and gatepass still fit together."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Final

from gatepass.cli.manners import DONE, FAILURE, MISCONFIGURED, UNREACHABLE, guard, put, put_json
from gatepass.cli.openclaw_setup import add_openclaw, find
from gatepass.cli.options import add_json, command_parser
from gatepass.errors import ConfigurationError
from gatepass.openclaw_setup.choose import Asked, NoUserError
from gatepass.openclaw_setup.executable import OpenClaw
from gatepass.openclaw_setup.findings import SETUP, Finding, findings
from gatepass.openclaw_setup.observe import observe
from gatepass.openclaw_setup.places import find_places, own_commands
from gatepass.openclaw_setup.plan import make_plan
from gatepass.paths import SOCKET_VARIABLE

_PURPOSE: Final = """\
Say whether OpenClaw, its configuration, the launcher, the broker and the gatepass proxy fit together: after an upgrade
of OpenClaw for instance, or when a command does not log in. Changes nothing. Each finding comes with its cure.

Exits with 0 if all is well, 6 if something is configured wrongly, else 5 if the broker gives no token, else 1."""

_EXAMPLES: Final = """\
  gatepass openclaw check
  gatepass openclaw check --json | jq -r '.findings[].cure'
  OPENCLAW_CONFIG_PATH=/srv/openclaw/openclaw.json gatepass openclaw check --proxy-user proxy"""

_STATUS: Final = {"broker": UNREACHABLE, "proxy_port": FAILURE, "openclaw_port": FAILURE, "answer": FAILURE}
"""What is not configured wrongly, but not running."""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parser = command_parser("openclaw check", _PURPOSE, _EXAMPLES)
    add_openclaw(parser)
    parser.add_argument(
        "--proxy-user", metavar="USER", help="who runs the proxy (default: you, root or the account 'gatepass-gateway')"
    )
    add_json(parser)
    options = parser.parse_args(arguments)
    return guard(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    found = _findings(options)
    if options.json:
        put_json({"fits": not found, "findings": [finding._asdict() for finding in found]})
    elif found:
        put("\n".join(f"{finding.where}: {finding.problem}\n    cure: {finding.cure}" for finding in found))
    else:
        put("all is well: OpenClaw's commands log in through gatepass")
    return max((_STATUS.get(finding.code, MISCONFIGURED) for finding in found), default=DONE)


def _findings(options: argparse.Namespace) -> tuple[Finding, ...]:
    """Return all findings; one that keeps the others from being looked for stands alone."""
    openclaw = OpenClaw(options.openclaw)
    try:
        openclaw.version()
    except ConfigurationError as error:
        return (_finding("version", error, "upgrade OpenClaw ('openclaw update'), then: gatepass openclaw check"),)
    config = openclaw.config_path()
    places, record = find_places(config, options.gateway_config, os.environ)
    try:
        found = find(config, places, openclaw)
        socket = options.socket or os.environ.get(SOCKET_VARIABLE) or None
        # By the ports alone it could not be told after OpenClaw's own was changed.
        noted = Asked(user=record.user, way=record.way) if record else Asked()
        plan = make_plan(found, noted)
    except NoUserError as error:
        return (Finding("not_set_up", config, f"setup was not run: {error.message}", f"{SETUP} --loopback-user NAME"),)
    except ConfigurationError as error:
        return (_finding("invalid", error, "change it there by hand, then: gatepass openclaw check"),)
    if plan.wishes.broker_socket is None:
        plan = plan._replace(wishes=plan.wishes._replace(broker_socket=socket))
    facts = observe(
        plan,
        found.config_text,
        places,
        openclaw,
        commands=own_commands(),
        proxy_user=options.proxy_user,
        timeout=options.timeout,
    )
    return findings(plan, facts)


def _finding(code: str, error: ConfigurationError, cure: str) -> Finding:
    return Finding(code, error.where, error.message.removeprefix(f"{error.where}: "), cure)
