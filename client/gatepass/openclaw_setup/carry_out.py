"""Making what a plan says so, in an order in which a failure at any point leaves OpenClaw as it was; and undoing it."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, NamedTuple

from gatepass.errors import ConfigurationError
from gatepass.openclaw_setup import launcher
from gatepass.openclaw_setup.executable import OpenClaw
from gatepass.openclaw_setup.facts import Issue
from gatepass.openclaw_setup.files import read_if_there, read_own, replace, stage
from gatepass.openclaw_setup.foreign import parse_configuration
from gatepass.openclaw_setup.launcher import LauncherFacts
from gatepass.openclaw_setup.places import Places
from gatepass.openclaw_setup.plan import Found, Plan
from gatepass.openclaw_setup.present import dotted
from gatepass.openclaw_setup.record import Record, backup_path, digest, to_text
from gatepass.openclaw_setup.restore import all_written, changed_since, restored

PROXY_FILE_MODE: Final = 0o600
"""It holds the header's name, which is for nobody else."""

FOR_OWNER: Final = 0o700
"""OpenClaw too takes its configuration's permissions for others away whenever it writes it. It holds secrets."""


class Writing(NamedTuple):
    """A file, and whether it is made or changed."""

    path: Path
    is_new: bool


def look_at_launcher(path: Path) -> LauncherFacts:
    """Return what lies at `path`."""
    try:
        status = path.lstat()
    except OSError:
        return LauncherFacts(str(path), exists=False)
    text = None
    if stat.S_ISREG(status.st_mode):
        with suppress(OSError, UnicodeDecodeError):
            text = path.read_text(encoding="utf-8")
    return LauncherFacts(str(path), True, status.st_mode, status.st_uid, text)


def needed_writes(plan: Plan, found: Found, places: Places) -> tuple[Writing, ...]:
    """Return the files that differ from the plan."""
    return tuple(_needed(plan, found, places))


def write(plan: Plan, found: Found, places: Places, record: Record | None, openclaw: OpenClaw) -> None:
    """Make all files what the plan says. Raise `ConfigurationError` with everything as it was."""
    paths = {writing.path for writing in needed_writes(plan, found, places)}
    if not paths and (record is None or (record.user, record.way) == (plan.wishes.user, plan.wishes.way)):
        return
    mode = stat.S_IMODE(places.config.stat().st_mode)
    with ExitStack() as failed:
        # The launcher comes first, because OpenClaw looks at it when it checks the configuration that names it.
        if places.launcher in paths:
            _make(places.launcher, plan.launcher_text, launcher.MODE, failed)
        if places.config in paths:
            staged = stage(places.config, plan.config_text, mode & FOR_OWNER)
            failed.callback(staged.unlink, missing_ok=True)
            _check(openclaw, staged, places.config)
            _refuse_if_changed(places.config, found.config_text)
            _back_up(found.config_text, mode & FOR_OWNER, places.config, record, failed)
        if places.proxy_file in paths:
            _make(places.proxy_file, plan.proxy_text, PROXY_FILE_MODE, failed)
        _make(places.record, to_text(_record(plan, found, places, record, mode)), 0o600, failed)
        if places.config in paths:
            staged.rename(places.config)  # last: from here on OpenClaw sees it
        failed.pop_all()


def undo(record: Record, places: Places, openclaw: OpenClaw, *, discard_changes: bool) -> Iterator[str]:
    """Take back what setup has done, and yield what was done. Raise `ConfigurationError`.

    A configuration that nobody has changed since is as it was before, byte for byte; else the later changes stay,
    unless they are to be discarded.
    """
    config, backup = Path(record.config), backup_path(Path(record.config))
    if record.config in record.digests:
        yield _undo_configuration(record, config, backup, openclaw, discard_changes=discard_changes)
    for path in (Path(record.launcher), Path(record.proxy_file)):
        yield _remove(path, record)
    _remove_if_empty(Path(record.proxy_file).parent)
    backup.unlink(missing_ok=True)
    places.record.unlink(missing_ok=True)


def _undo_configuration(
    record: Record, config: Path, backup: Path, openclaw: OpenClaw, *, discard_changes: bool
) -> str:
    original = read_if_there(backup)
    if original is None:
        raise ConfigurationError("the configuration as it was before setup is not there any more", where=str(backup))
    text = read_own(config)
    is_setups = not record.edited and digest(text) == record.digests[record.config]
    if text == original or is_setups or discard_changes:
        if text != original:
            replace(config, original, record.mode)
        return f"{config} is as it was before"
    with ExitStack() as staging:
        staged = stage(config, _with_later_changes(record, original, text), record.mode)
        staging.callback(staged.unlink, missing_ok=True)
        _check(openclaw, staged, config)
        _refuse_if_changed(config, text)
        staged.rename(config)
    return f"{config} is without what setup wrote, and has what was changed later"


def _with_later_changes(record: Record, original: str, text: str) -> str:
    """Return the configuration `text` without what setup wrote. Raise `ConfigurationError`."""
    backup = str(backup_path(Path(record.config)))
    before = parse_configuration(backup, original)
    lost = changed_since(before, parse_configuration(record.config, text), record.written)
    if lost or not record.written:
        what = ", ".join(map(dotted, lost)) or "this"
        raise ConfigurationError(
            f"{what} was changed after setup, by you or by OpenClaw. Make it what it was before, as {backup} has it, "
            "and undo again; or undo with --discard-changes, which puts back all of that file, and make your changes "
            "there anew. Nothing was changed",
            where=record.config,
        )
    return restored(before, text, record.written)


def _remove_if_empty(directory: Path) -> None:
    """Remove the directory that setup makes for the proxy's configuration, unless a person chose another."""
    if directory.name == "gatepass":
        with suppress(OSError):  # others' files are in it
            directory.rmdir()


def _make(path: Path, text: str, mode: int, failed: ExitStack) -> None:
    if not look_at_launcher(path).exists:
        failed.callback(path.unlink, missing_ok=True)
    replace(path, text, mode)


def _back_up(text: str, mode: int, config: Path, record: Record | None, failed: ExitStack) -> None:
    """Keep the configuration as it was before the first setup."""
    backup = backup_path(config)
    if record is not None and str(config) in record.digests:
        return
    if backup.exists():
        raise ConfigurationError(
            "this is the configuration from before an earlier setup, whose notes are gone; move it away first",
            where=str(backup),
        )
    _make(backup, text, mode, failed)


def _needed(plan: Plan, found: Found, places: Places) -> Iterator[Writing]:
    if plan.config_text != found.config_text:
        yield Writing(places.config, is_new=False)
    facts = look_at_launcher(places.launcher)
    is_good = stat.S_ISREG(facts.mode) and facts.uid == found.uid and stat.S_IMODE(facts.mode) == launcher.MODE
    if not is_good or facts.text != plan.launcher_text:
        yield Writing(places.launcher, is_new=not facts.exists)
    if plan.proxy_text != found.proxy_text:
        yield Writing(places.proxy_file, is_new=found.proxy_text is None)


def _check(openclaw: OpenClaw, staged: Path, config: Path) -> None:
    if issues := openclaw.issues(str(staged)):
        raise ConfigurationError(
            f"OpenClaw would not take the changed configuration: {listed(issues)}. Nothing was changed",
            where=str(config),
        )


def listed(issues: tuple[Issue, ...]) -> str:
    """Return OpenClaw's complaints in one line."""
    return "; ".join(f"{issue.path}: {issue.message}" for issue in issues)


def _record(plan: Plan, found: Found, places: Places, record: Record | None, mode: int) -> Record:
    digests = dict(record.digests) if record else {}
    earlier = digests.get(str(places.config))
    if plan.config_text != found.config_text:
        digests[str(places.config)] = digest(plan.config_text)
    digests[str(places.launcher)] = digest(plan.launcher_text)
    digests[str(places.proxy_file)] = digest(plan.proxy_text)
    return Record(
        config=str(places.config),
        user=plan.wishes.user,
        proxy_file=str(places.proxy_file),
        launcher=str(places.launcher),
        digests=digests,
        mode=record.mode if record else mode,
        edited=(record is not None and record.edited) or earlier not in (None, digest(found.config_text)),
        written=all_written(record.written if record else (), plan.changes),
        way=plan.wishes.way,
    )


def _refuse_if_changed(config: Path, text: str) -> None:
    if read_own(config) != text:
        raise ConfigurationError(
            "somebody has changed this meanwhile, perhaps OpenClaw itself; it was left as it is, so run this again",
            where=str(config),
        )


def _remove(path: Path, record: Record) -> str:
    text = read_if_there(path)
    if text is None:
        return f"{path} was gone already"
    if digest(text) != record.digests.get(str(path)):
        return f"{path} stays, because it was changed after setup"
    path.unlink()
    return f"{path} is removed"
