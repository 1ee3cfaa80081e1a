"""The command `gatepass-broker install`: reads options, looks for what stands against it, and has it done."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gatepass.daemon.command import DONE, FAILURE, INTERRUPTED, MISCONFIGURED, guard
from gatepass.errors import ConfigurationError, GatepassError
from gatepass_broker.install.commands import CommandError
from gatepass_broker.install.options import check_request, check_undo, parser_of, request_of

if TYPE_CHECKING:
    from gatepass_broker.install.layout import Layout
    from gatepass_broker.install.manifest import Manifest
    from gatepass_broker.install.problems import Intention
    from gatepass_broker.install.request import Request
    from gatepass_broker.install.steps import Steps

# What an extra brings is imported late, so that --help works and a missing extra is explained.
# ruff: noqa: PLC0415

_PROG: Final = "gatepass-broker install"
_NEEDED: Final = ("anyio", "cryptography", "msgspec", "structlog")
_LOCK: Final = Path("/run/gatepass-install.lock")
_AGAIN: Final = "run this again, or take everything off again: gatepass-broker install --undo"
_UNDO_AGAIN: Final = "run this again, for not everything is undone"


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = parser_of(_PROG)
    options = parser.parse_args(arguments)
    check_undo(parser, options)
    try:
        return guard(_PROG, "broker", _NEEDED, lambda: _command(parser, options))
    except KeyboardInterrupt:
        print(f"{_PROG}: interrupted; {_UNDO_AGAIN if options.undo else _AGAIN}", file=sys.stderr)
        return INTERRUPTED


def _command(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from gatepass_broker.install.layout import Layout
    from gatepass_broker.install.steps import Steps

    os.umask(0o022)
    layout = Layout()
    steps = Steps((lambda _: None) if options.json else print, dry_run=options.dry_run)
    with _alone():
        if options.undo:
            return _undo(options, layout, steps)
        return _install(parser, options, layout, steps)


def _install(parser: argparse.ArgumentParser, options: argparse.Namespace, layout: Layout, steps: Steps) -> int:
    from gatepass_broker.install.carry_out import install
    from gatepass_broker.install.manifest import Manifest, load
    from gatepass_broker.install.place import Work

    noted = (load(layout.manifest) if os.geteuid() == 0 else None) or Manifest()
    request = request_of(options).over(noted.request)
    check_request(parser, options, request)
    found, intention = _look(layout, request, noted)
    if intention is None:
        return _refuse(options, found)
    try:
        install(Work(intention, steps))
    except (GatepassError, OSError) as error:
        return _report_failure(options, steps, error)
    return _report(options, steps)


def _look(layout: Layout, request: Request, noted: Manifest) -> tuple[list[str], Intention | None]:
    """Return what stands against it, or what is to be done."""
    from gatepass.daemon.addresses import addresses_redirected_to
    from gatepass_broker.install import problems, units
    from gatepass_broker.install.observe import find_account
    from gatepass_broker.install.openclaw import find_openclaw
    from gatepass_broker.install.release import blueprint
    from gatepass_broker.install.requirements import ALWAYS, installed_distributions

    found = [*problems.system_problems()]
    can_look, plan = not found, None
    found += problems.account_problems(request)
    try:
        plan = blueprint(installed_distributions((*ALWAYS, *(("gateway",) if request.openclaw_user else ()))))
    except ConfigurationError as error:
        found.append(error.message)
    if not can_look or plan is None:
        return found, None
    account = find_account(request.openclaw_user) if request.openclaw_user else None
    openclaw = find_openclaw(request, account) if account else None
    files = (units.accounts_file(layout), *units.unit_files(layout, request))
    if openclaw:
        files += units.port_drop_in(layout, request, addresses_redirected_to())
        files += units.openclaw_drop_ins(layout, openclaw.unit, openclaw.manager)
    intention = problems.Intention(layout, request, noted, plan, openclaw, files)
    found += problems.problems(intention)
    return found, None if found else intention


def _undo(options: argparse.Namespace, layout: Layout, steps: Steps) -> int:
    from gatepass_broker.install.manifest import load
    from gatepass_broker.install.undo import Removal, begun, keep_or_purge, undo

    if os.geteuid() != 0:
        return _refuse(options, ["only root can remove services: run this with sudo"])
    noted = load(layout.manifest) or begun(layout)
    if noted is not None:
        undo(Removal(layout, noted, steps, purge=options.purge, discard_changes=options.discard_changes))
        return _report(options, steps)
    # Root owns a journal that an earlier --undo has left, and none that a broker is writing.
    if options.purge and layout.journal.is_dir() and layout.journal.lstat().st_uid == 0:
        keep_or_purge(layout, steps, purge=True)
    else:
        steps.note("nothing is installed, so there is nothing to undo")
    return _report(options, steps)


def _refuse(options: argparse.Namespace, problems: Sequence[str]) -> int:
    if options.json:
        print(json.dumps({"problems": [*problems]}, ensure_ascii=False))
        return MISCONFIGURED
    listed = "\n".join(f"  - {problem}" for problem in problems)
    raise ConfigurationError(f"nothing was changed, for this stands against it:\n{listed}")


def _report(options: argparse.Namespace, steps: Steps) -> int:
    if options.json:
        print(json.dumps(steps.as_json(), ensure_ascii=False))
    else:
        for text in (*(f"note: {note}" for note in steps.notes), *(f"left: {left}" for left in steps.left)):
            print(text)
        print(_summary(steps))
    return FAILURE if steps.left else DONE


def _summary(steps: Steps) -> str:
    if steps.left:
        return "not everything could be undone: see above"
    if not steps.done:
        return "nothing to do"
    return "nothing of this was done: leave out --dry-run to do it" if steps.dry_run else "done"


def _report_failure(options: argparse.Namespace, steps: Steps, error: Exception) -> int:
    reason = error.message if isinstance(error, GatepassError) else str(error)
    if options.json:
        print(json.dumps({**steps.as_json(), "error": reason}, ensure_ascii=False))
        return FAILURE
    raise CommandError(f"{reason}\nmend that and {_AGAIN}")  # not misconfigured, which means that nothing was changed


@contextmanager
def _alone() -> Iterator[None]:
    """Let no other run of this command change things meanwhile."""
    if os.geteuid() != 0:  # who can change nothing anyway
        yield
        return
    descriptor = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if not _is_mine(descriptor):
            raise CommandError("another 'gatepass-broker install' is at work; wait for it")
        try:
            yield
        finally:
            _LOCK.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_mine(lock: int) -> bool:
    """Take the lock. Whether it is held now, and is the one that others would take: not that of a run just ended."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock), _LOCK.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
