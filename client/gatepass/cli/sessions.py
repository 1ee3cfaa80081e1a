"""`gatepass sessions`: what is open at the gateways, and what sessions left behind there."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

from gatepass.cli.accounts import user_name
from gatepass.cli.lists import count, in_columns, members, moment
from gatepass.cli.manners import DONE, guard, plain, put, put_json, tell
from gatepass.cli.options import add_json, admin_client_of, command_parser
from gatepass.oversight import LeftBehindList, SessionAt, SessionList
from gatepass.sessions import LeftBehind

_PURPOSE: Final = """\
List the sessions of local callers that are open at the gateways connected to the broker. With --left-behind list what
sessions made there that outlives them (a device that one paired, a cron job), and how to remove it. Takes root, but
for a broker of your own.

'by' says how a session logged in: with a token, with the token of an earlier login (reconnect), or as a device."""

_EXAMPLES: Final = """\
  sudo gatepass sessions
  sudo gatepass sessions --json | jq -r '.sessions[] | select(.uid == 1000) | .jti'
  sudo gatepass sessions --left-behind
  sudo gatepass revoke --jti ID   # ends one of them, and its token"""

_BEYOND: Final = (
    "What an agent's own tools made inside the gateway is in no session of a local caller, and so not in this list:\n"
    "'openclaw cron list --all' and 'openclaw devices list' show all that there is."
)


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parser = command_parser("sessions", _PURPOSE, _EXAMPLES)
    parser.add_argument("--left-behind", action="store_true", help="list what sessions have left behind")
    add_json(parser)
    options = parser.parse_args(arguments)
    return guard(lambda: _left_behind(options) if options.left_behind else _sessions(options))


def _sessions(options: argparse.Namespace) -> int:
    with admin_client_of(options) as client:
        found = client.sessions()
    if options.json:
        put_json(
            {
                "gateways": members(found.gateways),
                "sessions": [{"gateway": gateway, **members(session)} for gateway, session in found.sessions],
                "more": found.more,
            }
        )
    else:
        put(_session_table(found))
    for gateway in found.gateways:
        if not gateway.current:
            tell(f"the gateway '{gateway.name}' has not yet carried out the last revocation, lock or unlock")
    _tell_of_more(found.more)
    return DONE


def _session_table(found: SessionList) -> str:
    if not found.gateways:
        return (
            "no gateway is connected to the broker, so it knows of no session; a gateway that runs without its broker "
            "goes on for a time: 'systemctl status gatepass-gateway' says how it is"
        )
    names = ", ".join(plain(gateway.name) for gateway in found.gateways)
    gateways = f"{count(len(found.gateways), 'gateway')} ({names})"
    if not found.sessions:
        return f"no session is open at {gateways}"
    header = ("since", "user", "identity", "unit", "kind", "by", "client", "gateway", "jti")
    return f"{in_columns(header, [_session_row(each) for each in found.sessions])}\n\n" + (
        f"{count(len(found.sessions) + found.more, 'session')} at {gateways}"
    )


def _session_row(at: SessionAt) -> tuple[str, ...]:
    session = at.session
    return (
        moment(session.since),
        user_name(session.uid),
        session.identity or "-",
        session.unit or "-",
        session.kind,
        session.login,
        session.client or "-",
        at.gateway,
        session.jti or "-",
    )


def _left_behind(options: argparse.Namespace) -> int:
    with admin_client_of(options) as client:
        found = client.left_behind()
    if options.json:
        put_json(members({"left_behind": found.entries, "more": found.more}))
    else:
        put(_left_behind_table(found))
    _tell_of_more(found.more)
    return DONE


def _left_behind_table(found: LeftBehindList) -> str:
    if not found.entries:
        return f"no session has left anything behind that gatepass saw\n\n{_BEYOND}"
    header = ("when", "kind", "id", "by", "to remove it")
    rows = [(moment(entry.time), entry.kind, entry.name, _by_whom(entry), entry.removal) for entry in found.entries]
    return f"{in_columns(header, rows)}\n\n{_BEYOND}"


def _by_whom(entry: LeftBehind) -> str:
    user = user_name(entry.uid)
    whom = user if entry.identity is None else f"{entry.identity} ({user})"
    return whom if entry.unit is None else f"{whom} in {entry.unit}"


def _tell_of_more(more: int) -> None:
    if more:
        tell(f"there are {more} more than the broker can tell at once")
