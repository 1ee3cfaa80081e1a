"""The command `gatepass-broker`: reads options, chooses settings, and runs the broker."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from gatepass import __version__
from gatepass.daemon.command import DONE, daemon_parser, end, guard, serve
from gatepass.errors import ErrorCode, GatepassError

if TYPE_CHECKING:
    from gatepass.daemon.systemd import Manager
    from gatepass_broker.settings import Settings

_NEEDED: Final = ("anyio", "cryptography", "msgspec", "structlog")

_PERSONAL: Final = ("socket", "state_dir", "scope", "audience", "ttl")
"""Options that only go with --loopback-user."""

_DESCRIPTION: Final = """\
Issue short-lived tokens to local programs, to those that the kernel and the rules vouch for.

Either with a file, for a machine; or with options alone, for one person's own machine."""

_EXAMPLES: Final = """\
examples:
  gatepass-broker --loopback-user derek@example.com
      serve yourself only, on $XDG_RUNTIME_DIR/gatepass/broker.sock
  gatepass-broker --loopback-user derek@example.com --scope operator.read
      the same, for programs that shall only read
  gatepass-broker --config /etc/gatepass/broker.toml --check
      say what is wrong with a configuration, and where
  gatepass-broker --config /etc/gatepass/broker.toml
      serve the users that the file's [[rule]] tables name
  gatepass-broker --config /etc/gatepass/broker.toml --check-journal
      read the whole journal and say whether a record was changed or removed
  gatepass-broker install --help
      how to run it as a service of systemd, with or without OpenClaw behind it

signals:
  SIGHUP reads the file again and keeps the last good one if it is wrong; SIGTERM and SIGINT stop in good order.

exit codes:
  0 done, 1 failure, 2 wrong use, 6 misconfigured
"""


def program() -> NoReturn:
    """What `gatepass-broker` starts: the command, as a process."""
    end(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["install"]:
        return _install(words[1:])
    parser = daemon_parser("gatepass-broker", _DESCRIPTION, _EXAMPLES)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", metavar="FILE", type=Path, help="the configuration, TOML")
    which.add_argument("--loopback-user", metavar="NAME", help="the identity that your own programs get")
    parser.add_argument("--check-journal", action="store_true", help="check every record of the journal and exit")
    _add_personal_options(parser)
    options = parser.parse_args(words)
    _check_usage(parser, options)
    return guard("gatepass-broker", "broker", _NEEDED, lambda: _command(options))


def _install(arguments: Sequence[str]) -> int:
    from gatepass_broker.install.cli import main as install  # noqa: PLC0415 - the broker does not need it

    return install(arguments)


def _add_personal_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("with --loopback-user")
    group.add_argument(
        "--socket", metavar="PATH", type=Path, help="where to listen, in a directory that is yours alone"
    )
    group.add_argument("--state-dir", metavar="DIR", type=Path, help="journal (default: $XDG_STATE_HOME/gatepass)")
    group.add_argument(
        "--scope",
        metavar="NAME",
        action="append",
        help="grant this scope; may be repeated (default: every operator scope of OpenClaw)",
    )
    group.add_argument(
        "--audience", metavar="NAME", action="append", help="grant this audience; may be repeated (default: openclaw)"
    )
    group.add_argument("--ttl", metavar="SECONDS", type=int, help="life of a token, both default and longest")


def _check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.config is None:
        return
    for name in _PERSONAL:
        if getattr(options, name) is not None:
            parser.error(f"--{name.replace('_', '-')} goes with --loopback-user; a file says it by itself")


def _command(options: argparse.Namespace) -> int:
    # Imported late, so that --help works and a missing extra is explained.
    from gatepass.daemon.process import harden  # noqa: PLC0415
    from gatepass.daemon.systemd import Manager  # noqa: PLC0415

    manager = Manager.from_environment()
    harden()
    with manager.slow_to_fail():
        return _run_or_check(options, manager)


def _run_or_check(options: argparse.Namespace, manager: Manager) -> int:
    load = _loader(options)
    settings = load()
    if options.check:
        rules = settings.rules
        files = 1 + len(settings.rule_files)
        print(
            f"{rules.source or 'the options'}: no fault found; issuer {rules.issuer}, "
            f"{len(rules.rules)} rules{f' in {files} files' if rules.source else ''}"
        )
        return DONE
    if options.check_journal:
        return _check_journal(settings.state_dir)
    return _run(options, settings, None if options.config is None else load, manager)


def _loader(options: argparse.Namespace) -> Callable[[], Settings]:
    from gatepass_broker.config import load  # noqa: PLC0415
    from gatepass_broker.operator_scopes import OPERATOR_SCOPES  # noqa: PLC0415
    from gatepass_broker.personal import DEFAULT_AUDIENCES, personal  # noqa: PLC0415

    if options.config is not None:
        return lambda: load(options.config)
    return lambda: personal(
        options.loopback_user,
        os.geteuid(),
        os.environ,
        socket=options.socket,
        state_dir=options.state_dir,
        scopes=options.scope or OPERATOR_SCOPES,
        audiences=options.audience or DEFAULT_AUDIENCES,
        ttl=options.ttl,
    )


def _check_journal(state_dir: Path) -> int:
    from gatepass_broker.journal import check_journal  # noqa: PLC0415

    directory = state_dir / "journal"
    report = check_journal(directory)
    if report.problem:
        raise GatepassError(ErrorCode.INTERNAL, report.problem)
    print(f"{directory}: {report.records} records in {report.segments} segments hold together")
    print(f"the last one: {report.head.seq} {report.head.digest}")
    return DONE


def _run(
    options: argparse.Namespace, settings: Settings, reload: Callable[[], Settings] | None, manager: Manager
) -> int:
    from gatepass_broker.server import run  # noqa: PLC0415

    return serve(options, run, settings, __version__, reload, _ready, manager)


def _ready(settings: Settings) -> None:
    import structlog  # noqa: PLC0415

    structlog.stdlib.get_logger().info(
        "ready",
        sockets=" ".join(str(entry.path) for entry in settings.sockets),
        issuer=settings.rules.issuer,
        rules=len(settings.rules.rules),
    )
