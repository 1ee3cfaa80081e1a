"""`gatepass explain`: how a request for a token is decided, and what to change."""

from __future__ import annotations

import argparse
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Final

from gatepass.cli.accounts import find_account, user_name
from gatepass.cli.lists import members
from gatepass.cli.manners import DONE, exit_status, guard, plain, put, put_json
from gatepass.cli.options import (
    Parser,
    add_binding,
    add_json,
    add_wanted,
    admin_client_of,
    client_of,
    command_parser,
)
from gatepass.errors import ErrorCode, TryLaterError, error_from_wire
from gatepass.explanation import Cure, Explanation, Failed, RuleFinding, Seen, Verdict
from gatepass.messages import Binding

WIDTH: Final = 80
"""Columns. TOML is not wrapped: it is there to be pasted."""

_PURPOSE: Final = """\
Say how the broker decides on a token, and why: whom it saw, each rule with the first selector that failed, the
decision, and what to change so that it is allowed. Without --pid and --as it is about this very command, and so about
what you could run in its place. Asking issues nothing and counts for nothing.

Exits with 0 if a token would be issued, 3 if it would be denied, 4 if there would be one later."""

_EXAMPLES: Final = """\
  gatepass explain --scope operator.admin
  sudo gatepass explain --pid "$(systemctl show -P MainPID openclaw)"   # as that service would be answered
  sudo gatepass explain --as derek                                      # as any process of that user
  systemd-run --user --wait --pipe gatepass explain                     # from another unit
  gatepass explain --json | jq -r '.cures[].toml // empty'"""

_OPTION: Final = {"binding": "--bind"}
"""Options that are not called as the request's member is."""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    options = _command_line().parse_args(arguments)
    return guard(lambda: _run(options))


def _command_line() -> Parser:
    parser = command_parser("explain", _PURPOSE, _EXAMPLES)
    whom = parser.add_mutually_exclusive_group()
    whom.add_argument(
        "--pid", metavar="N", type=int, help="about this process, as the broker's pid namespace counts (takes root)"
    )
    whom.add_argument(
        "--as",
        dest="user",
        metavar="USER",
        help="about this user, by name or uid, with the groups of a new login and in no particular unit (takes root)",
    )
    add_wanted(parser)
    add_binding(parser, *Binding)
    add_json(parser)
    return parser


def _run(options: argparse.Namespace) -> int:
    explanation = _ask(options)
    if options.json:
        put_json(members(explanation))
    else:
        put("\n".join(_lines(explanation)))
    return _status(explanation.decision)


def _ask(options: argparse.Namespace) -> Explanation:
    wanted = options.audience, options.scope, options.ttl, options.bind
    if options.user is not None:
        account = find_account(options.user)
        with admin_client_of(options) as client:
            return client.explain(*wanted, **account._asdict())
    with client_of(options) if options.pid is None else admin_client_of(options) as client:
        return client.explain(*wanted, pid=options.pid)


def _status(decision: Verdict) -> int:
    if decision.allowed:
        return DONE
    return exit_status(error_from_wire(decision.code or ErrorCode.DENIED, decision.reason or "", decision.retry_after))


def _lines(explanation: Explanation) -> Iterator[str]:
    yield "the broker saw"
    yield from _rows(_seen(explanation.caller))
    if explanation.rules:
        yield from ("", "its rules, in order")
        yield from _rows([(rule.rule, _finding(rule)) for rule in explanation.rules])
    if explanation.rules_left_out:
        yield f"  … and {explanation.rules_left_out} more that do not decide"
    yield from ("", "its decision")
    yield from _rows(_decision(explanation.decision))
    if explanation.cures:
        yield from ("", "what would change it")
        for number, cure in enumerate(explanation.cures, start=1):
            yield from _cure(number, cure)


def _seen(caller: Seen) -> list[tuple[str, str]]:
    """What is unknown says so where rules often ask for it; what is rare is shown where it is known."""
    in_no_unit = "unknown" if caller.cgroup is None else "none"
    rows = [
        ("user", "unknown" if caller.uid is None else _user(caller.uid)),
        ("group", "unknown" if caller.gid is None else str(caller.gid)),
        ("groups", _groups(caller)),
        ("process", "unknown" if caller.pid is None else str(caller.pid)),
        ("unit", caller.unit or in_no_unit),
        ("slices", " ".join(caller.slices)),
        ("manager", None if caller.manager_uid is None else f"of user {_user(caller.manager_uid)}"),
        ("user unit", caller.user_unit),
        ("user slices", " ".join(caller.user_slices)),
        ("cgroup", caller.cgroup),
        ("container", caller.container),
        ("pid namespace", caller.pid_namespace),
    ]
    return [(name, value) for name, value in rows if value]


def _groups(caller: Seen) -> str:
    more = f" and {caller.groups_left_out} more" if caller.groups_left_out else ""
    return f"{' '.join(map(str, caller.groups)) or 'none'}{more}"


def _user(uid: int) -> str:
    name = user_name(uid)
    return name if name == str(uid) else f"{uid} ({name})"


def _finding(rule: RuleFinding) -> str:
    if rule.skipped:
        return "not reached"
    if rule.matches:
        return "matches"
    return "no" if rule.failed is None else f"no: {_failed(rule.failed)}"


def _failed(failed: Failed) -> str:
    found = f"{failed.selector} is {failed.found or 'unknown'}"
    return found if failed.wanted is None else f"{found}, not {failed.wanted}"


def _decision(decision: Verdict) -> list[tuple[str, str]]:
    if decision.allowed:
        return [
            ("allowed", f"by rule '{decision.rule}'" if decision.rule else "yes"),
            ("identity", decision.identity or "unknown"),
            ("audience", decision.audience or "unknown"),
            ("scope", decision.scope or "none"),
            ("life", "unknown" if decision.ttl is None else f"{decision.ttl} s"),
            ("binding", decision.binding or Binding.UID),
        ]
    code = decision.code or ErrorCode.DENIED
    is_later = isinstance(error_from_wire(code, ""), TryLaterError)
    return [("not now" if is_later else "denied", decision.reason or code)]


def _cure(number: int, cure: Cure) -> Iterator[str]:
    yield _wrapped(plain(cure.text), f"  {number}. ", "     ")
    if cure.arguments:
        yield f"     {plain(_as_options(cure.arguments))}"
    if cure.toml is not None:
        yield from ("", *map(plain, cure.toml.strip("\n").split("\n")), "")


def _as_options(wanted: dict[str, Any]) -> str:
    return " ".join(f"{_OPTION.get(name, f'--{name}')} {shlex.quote(str(value))}" for name, value in wanted.items())


def _rows(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield names and values, aligned; a long value goes on beneath itself."""
    width = max(len(plain(name)) for name, _ in rows) + 4
    for name, value in rows:
        yield _wrapped(plain(value), f"  {plain(name)}".ljust(width), " " * width)


def _wrapped(text: str, first: str, following: str) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=following,
        break_long_words=False,
        break_on_hyphens=False,
    )
