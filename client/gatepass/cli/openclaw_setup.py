"""`gatepass openclaw setup`: the change that OpenClaw's configuration needs."""

from __future__ import annotations

import argparse
import os
import pwd
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from gatepass.cli.manners import DONE, USAGE, CommandError, guard, put, put_json
from gatepass.cli.options import Parser, add_json, command_parser
from gatepass.errors import ConfigurationError
from gatepass.openclaw_setup.carry_out import Writing, listed, needed_writes, undo, write
from gatepass.openclaw_setup.choose import Asked, NoUserError
from gatepass.openclaw_setup.desired import ABSENT, PROVIDER_PATH
from gatepass.openclaw_setup.executable import OpenClaw
from gatepass.openclaw_setup.facts import TOKEN_VARIABLE
from gatepass.openclaw_setup.files import read_if_there, read_own
from gatepass.openclaw_setup.listeners import listener_on
from gatepass.openclaw_setup.observe import token_variables
from gatepass.openclaw_setup.places import Places, find_places, own_commands
from gatepass.openclaw_setup.plan import Found, Plan, make_plan
from gatepass.openclaw_setup.present import change_lines, dotted, shown, steps
from gatepass.openclaw_setup.record import Record, backup_path
from gatepass.openclaw_setup.versions import OLDEST, caveat
from gatepass.openclaw_setup.wishes import ReverseProxy
from gatepass.paths import SOCKET_VARIABLE

_PURPOSE: Final = f"""\
Show what has to change so that OpenClaw's own commands, and its sub-agents, log in through gatepass; with --write,
change it. Nothing else in OpenClaw's configuration is touched, not even a comment. Besides it there are a launcher,
which OpenClaw starts for a token, and the configuration of the gatepass proxy; both come from the same
choices, so nothing is configured twice. Needs OpenClaw {OLDEST} or later; run it as the user who runs OpenClaw.

What an agent starts by its exec tool dials OpenClaw's own port: with --way front it misses the proxy and is refused.

There are two ways of standing in front:
  front     (no root) the proxy takes the port that commands dial, and OpenClaw is started on another one
  redirect  (root) OpenClaw keeps its port, and what local programs send there is redirected to the proxy"""

_EXAMPLES: Final = """\
  gatepass openclaw setup --loopback-user derek@example.com           # look first
  gatepass openclaw setup --loopback-user derek@example.com --write
  gatepass openclaw setup --write --scope operator.read               # local programs may only read
  gatepass openclaw setup --write --reverse-proxy www-data            # nginx on this machine logs people in
  gatepass openclaw setup --write --reverse-proxy www-data:nginx.service
  gatepass openclaw setup --undo"""

_REVERSE_PROXY: Final = "--reverse-proxy"


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parser = _command_line()
    options = parser.parse_args(arguments)
    if options.discard_changes and not options.undo:
        parser.error("--discard-changes goes with --undo")
    if options.undo and options.write:
        parser.error("either --write or --undo")
    return guard(lambda: _undo(options) if options.undo else _setup(options))


def _command_line() -> Parser:
    parser = command_parser("openclaw setup", _PURPOSE, _EXAMPLES)
    add_openclaw(parser)
    parser.add_argument("--write", action="store_true", help="make the changes")
    parser.add_argument(
        "--undo", action="store_true", help="take back what setup has done; what was changed since stays"
    )
    parser.add_argument(
        "--discard-changes",
        action="store_true",
        help="with --undo: put everything back as it was before setup, and lose what was changed since",
    )
    parser.add_argument("--loopback-user", metavar="NAME", help="who local programs are to OpenClaw (kept once said)")
    parser.add_argument(
        "--scope",
        metavar="NAME",
        action="append",
        default=[],
        help="what they may do; may be repeated (default: every operator scope of OpenClaw)",
    )
    parser.add_argument("--way", choices=("front", "redirect"), help="how the proxy stands in front (default: front)")
    parser.add_argument(
        "--second-port",
        metavar="PORT",
        type=_port,
        help="OpenClaw's own port with --way front, the proxy's with --way redirect (default: gateway.port + 1)",
    )
    parser.add_argument("--user-header", metavar="NAME", help="the identity header (default: made, and unguessable)")
    parser.add_argument(
        _REVERSE_PROXY,
        metavar="USER[:UNIT]",
        action="append",
        default=[],
        help="a reverse proxy on this machine that sends the identity header runs as USER, and as the systemd service "
        "UNIT if other programs run as USER too; may be repeated",
    )
    add_json(parser)
    return parser


def add_openclaw(parser: Parser) -> None:
    """Add the options that say where things are."""
    parser.add_argument(
        "--openclaw",
        metavar="PATH",
        help="OpenClaw's command (default: found in $PATH); OPENCLAW_CONFIG_PATH and OPENCLAW_STATE_DIR count",
    )
    parser.add_argument(
        "--gateway-config",
        metavar="FILE",
        help="the proxy's configuration (default: $XDG_CONFIG_HOME/gatepass/gateway.toml)",
    )


def find(config: str, places: Places, openclaw: OpenClaw) -> Found:
    """Return what is there. Raise `ConfigurationError`, `CommandError`."""
    try:
        text = read_own(places.config)
    except FileNotFoundError:
        raise ConfigurationError("OpenClaw is not set up yet; begin with 'openclaw onboard'", where=config) from None
    return Found(
        config_path=config,
        config_text=text,
        proxy_path=str(places.proxy_file),
        proxy_text=read_if_there(places.proxy_file),
        launcher_path=str(places.launcher),
        uid=os.geteuid(),
        gatepass=str(own_commands() / "gatepass"),
        operator_scopes=openclaw.operator_scopes(),
        random=secrets.token_hex(16),
    )


def _setup(options: argparse.Namespace) -> int:
    openclaw = OpenClaw(options.openclaw)
    version = openclaw.version()
    config = openclaw.config_path()
    places, record = find_places(config, options.gateway_config, os.environ)
    found = find(config, places, openclaw)
    plan = _plan(found, options, record)
    _refuse_invalid(openclaw, places)
    if record is None:  # later it is one of ours that listens there
        _refuse_taken(plan.wishes.second_port)
    writes = needed_writes(plan, found, places)
    if options.write:
        write(plan, found, places, record, openclaw)
    notes = (*plan.notes, *_variable_notes(places, found.config_text), *filter(None, [caveat(version)]))
    if options.json:
        put_json(_as_json(plan, writes, notes, places, written=options.write))
    else:
        put("\n".join(_report(plan, writes, notes, places, written=options.write)))
    return DONE


def _plan(found: Found, options: argparse.Namespace, record: Record | None) -> Plan:
    try:
        return make_plan(found, _asked(options, record))
    except NoUserError as error:
        raise CommandError(error.message, USAGE) from error


def _asked(options: argparse.Namespace, record: Record | None) -> Asked:
    return Asked(
        user=options.loopback_user or (record.user if record else None),
        scopes=tuple(options.scope),
        way=options.way or (record.way if record else None),
        second_port=options.second_port,
        user_header=options.user_header,
        broker_socket=options.socket or os.environ.get(SOCKET_VARIABLE) or None,
        reverse_proxies=tuple(map(_reverse_proxy, options.reverse_proxy)),
    )


def _reverse_proxy(text: str) -> ReverseProxy:
    user, _, unit = text.partition(":")
    if unit and not unit.endswith(".service"):
        raise ConfigurationError(f"'{unit}' is not the full name of a service; nginx.service is", where=_REVERSE_PROXY)
    try:
        return ReverseProxy(int(user) if user.isdecimal() else pwd.getpwnam(user).pw_name, unit or None)
    except KeyError:
        raise ConfigurationError(f"there is no user '{user}'", where=_REVERSE_PROXY) from None


def _refuse_taken(port: int) -> None:
    if listener := listener_on(port):
        raise ConfigurationError(
            f"port {port} is taken, by a program of uid {listener.uid}; take another one: --second-port PORT",
            where="--second-port",
        )


def _refuse_invalid(openclaw: OpenClaw, places: Places) -> None:
    """Leave alone what OpenClaw itself does not take, except where it is our launcher that it complains about."""
    ours = dotted(PROVIDER_PATH)
    if issues := tuple(issue for issue in openclaw.issues() if not issue.path.startswith(ours)):
        raise ConfigurationError(
            f"OpenClaw does not take this as it is: {listed(issues)}; 'openclaw doctor' may help. Nothing was changed",
            where=str(places.config),
        )


def _variable_notes(places: Places, text: str) -> Iterator[str]:
    for place in token_variables(places, text, os.environ):
        yield f"{place} sets {TOKEN_VARIABLE}: OpenClaw does not start in this mode until it is removed there"


def _undo(options: argparse.Namespace) -> int:
    openclaw = OpenClaw(options.openclaw)
    config = openclaw.config_path()
    places, record = find_places(config, options.gateway_config, os.environ)
    if record is None:
        raise CommandError(f"there is nothing to undo: no setup was made for {config}")
    if record.config != config:
        raise CommandError(f"setup was made for {record.config}: set OPENCLAW_CONFIG_PATH to that, not to {config}")
    done = list(undo(record, places, openclaw, discard_changes=options.discard_changes))
    if options.json:
        put_json({"undone": True, "done": done})
    else:
        put("\n".join([*done, "OpenClaw has to be started on its own port again: openclaw gateway restart"]))
    return DONE


def _report(
    plan: Plan, writes: Sequence[Writing], notes: Sequence[str], places: Places, *, written: bool
) -> Iterator[str]:
    if not writes:
        yield "nothing to change: OpenClaw's configuration, the launcher and the proxy's configuration are right"
    elif plan.changes:
        yield f"{places.config}{'' if written else '  (not changed yet)'}"
        for change in plan.changes:
            yield from change_lines(change)
    for path, action in _actions(writes, places, written):
        yield f"{action:<12} {path}"
    yield from (f"note: {note}" for note in notes)
    if writes and not written:
        yield "To make this change, run the same command with --write."
    elif writes:
        yield "Now, in this order, each of the programs in a terminal of its own or as a service:"
        for step in steps(plan.wishes, str(own_commands()), str(places.proxy_file)):
            yield f"  {step.command}"
            yield f"      {step.note}"


def _actions(writes: Sequence[Writing], places: Places, written: bool) -> Iterator[tuple[Path, str]]:
    for path, is_new in writes:
        verb = ("made" if is_new else "changed") if written else ("to be made" if is_new else "to change")
        yield path, verb
        if path == places.config:
            yield backup_path(path), "as it was" if written else "to be made"


def _as_json(
    plan: Plan, writes: Sequence[Writing], notes: Sequence[str], places: Places, *, written: bool
) -> dict[str, Any]:
    return {
        "written": written and bool(writes),
        "config": str(places.config),
        "changes": [
            {
                "path": dotted(change.path),
                "old": None if change.old is ABSENT else shown(change.path, change.old),
                "new": None if change.new is ABSENT else shown(change.path, change.new),
                "reason": change.reason,
            }
            for change in plan.changes
        ],
        "files": [{"path": str(path), "action": action} for path, action in _actions(writes, places, written)],
        "notes": list(notes),
        "steps": [step._asdict() for step in steps(plan.wishes, str(own_commands()), str(places.proxy_file))],
    }


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 65_536:
        raise argparse.ArgumentTypeError("must be a number between 1 and 65535")
    return port
