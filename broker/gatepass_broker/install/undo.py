"""Taking everything off the machine again that is on record. What fails is said, and the rest goes on."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from gatepass_broker.install import accounts, files, openclaw, services
from gatepass_broker.install.commands import run
from gatepass_broker.install.layout import REDIRECT_SERVICE, Layout
from gatepass_broker.install.manifest import Manifest, save
from gatepass_broker.install.observe import find_account, find_account_of
from gatepass_broker.install.openclaw import OpenClaw
from gatepass_broker.install.steps import Steps

_PRIVATE: Final = 0o700
_AS_IT_WAS: Final = (
    "nothing was taken away, and gatepass goes on as before. Mend what is named below and run this again, or run it "
    "with --discard-changes: that takes all the rest away whatever comes of OpenClaw's configuration, and loses what "
    "was changed there since it was set up"
)

_GUARDED: Final = (
    "OpenClaw's configuration still believes the proxy, so the guard, which keeps local programs from it, stays until "
    "the next boot; once the configuration is as it should be: nft delete table inet gatepass_guard"
)


class Removal(NamedTuple):
    """An installation that is to go."""

    layout: Layout
    manifest: Manifest
    steps: Steps
    purge: bool
    """The journal too."""
    discard_changes: bool
    """Of OpenClaw's configuration, since it was set up."""


def undo(removal: Removal) -> None:
    """Remove what is on record. `removal.steps.left` says what could not be.

    Without the rest of it an OpenClaw that is still set up would be one that nobody reaches: then everything stays,
    unless that is wanted.
    """
    layout, noted, steps = removal.layout, removal.manifest, removal.steps
    found = _find_openclaw(removal)
    restored = found is None or _undo_setup(removal, found)
    if not restored and not removal.discard_changes:
        steps.note(_AS_IT_WAS)
        return
    if not restored:
        steps.note(_GUARDED)
    was_running = found is not None and not found.is_persons and services.state(found.unit).running
    # OpenClaw is untied first, so that it does not stop with the redirect.
    if _remove_files(removal, layout.root / "etc/systemd"):
        _reload(steps)
    _stop(removal)
    if _remove_files(removal, layout.root):
        _reload(steps)
    _remove_links(removal)
    _remove_staged(removal)
    _remove_directories(removal)
    accounts.remove(steps, noted)
    keep_or_purge(layout, steps, purge=removal.purge)
    if found is not None and restored:
        _restart(steps, found, was_running=was_running)
    if restored:
        _remove_guard(removal)
    _remove_home(removal)


def begun(layout: Layout) -> Manifest | None:
    """Return the empty record of an installation that was killed before it had one; None if there is none."""
    made = {layout.releases.name, files.staged_of(layout.manifest).name}
    if not layout.home.is_dir() or {entry.name for entry in layout.home.iterdir()} - made:
        return None
    return Manifest()


def keep_or_purge(layout: Layout, steps: Steps, *, purge: bool) -> None:
    """Remove the journal, or give it to root: the number of the account that wrote it may become another's."""
    journal = layout.journal
    if not journal.is_dir():
        return
    if purge:
        steps.attempt(f"remove the journal {journal}", lambda: shutil.rmtree(journal))
    elif journal.lstat().st_uid != 0:
        steps.attempt(f"give the journal {journal} to root", lambda: _give_to_root(journal))


def _find_openclaw(removal: Removal) -> OpenClaw | None:
    """Return the OpenClaw that was set up, None if there is none any more."""
    request = removal.manifest.request
    if not removal.manifest.openclaw_set_up or request.openclaw_user is None:
        return None
    account = find_account(request.openclaw_user) or find_account_of(removal.manifest.openclaw_uid)
    if account is None:
        removal.steps.note(f"there is no user '{request.openclaw_user}' any more, whose OpenClaw was set up")
        return None
    return openclaw.find_openclaw(request, account)


def _undo_setup(removal: Removal, found: OpenClaw) -> bool:
    layout, discard = removal.layout, removal.discard_changes
    command = f"gatepass openclaw setup --undo{' --discard-changes' if discard else ''}"
    return removal.steps.attempt(
        f"as {found.account.name}: {command}",
        lambda: openclaw.undo_setup(layout, found, discard_changes=discard),
    )


def _stop(removal: Removal) -> None:
    layout, steps = removal.layout, removal.steps
    units = [Path(name).name for name in removal.manifest.files if Path(name).parent == layout.units]
    for unit in sorted(units, key=_stops_late):
        if services.state(unit).loaded:
            steps.attempt(f"systemctl disable --now {unit}", partial(services.end, unit))


def _remove_guard(removal: Removal) -> None:
    """Not before OpenClaw has its old configuration: until then it would believe what only the proxy may say."""
    layout = removal.layout
    command = layout.command("gatepass-redirect")
    if str(layout.units / REDIRECT_SERVICE) in removal.manifest.files and command.exists():
        removal.steps.attempt("gatepass-redirect --remove (the guard)", lambda: run(command, "--remove"))


def _stops_late(unit: str) -> tuple[bool, bool, str]:
    """The redirect first; sockets before what they would start again."""
    return unit != REDIRECT_SERVICE, not unit.endswith(".socket"), unit


def _remove_files(removal: Removal, below: Path) -> bool:
    """Return whether there were any."""
    there = [path for path in map(Path, removal.manifest.files) if path.is_relative_to(below) and os.path.lexists(path)]
    for path in there:
        removal.steps.attempt(f"remove {path}{_if_changed(removal, path)}", path.unlink)
    return bool(there)


def _if_changed(removal: Removal, path: Path) -> str:
    is_own = not path.is_symlink() and removal.manifest.is_own(path, files.read(path) or b"")
    return "" if is_own else " (it was changed since it was installed)"


def _remove_links(removal: Removal) -> None:
    for path, target in removal.manifest.links.items():
        if files.target_of(Path(path)) == target:
            removal.steps.attempt(f"remove {path}", Path(path).unlink)


def _remove_staged(removal: Removal) -> None:
    """What a run that was killed had made beside the places where it belongs."""
    noted = removal.manifest
    places = {*map(Path, noted.files), *map(Path, noted.links), removal.layout.gateway_config}
    for path in sorted(map(files.staged_of, places)):
        if os.path.lexists(path):
            removal.steps.attempt(f"remove {path}", path.unlink)


def _remove_directories(removal: Removal) -> None:
    runtime = removal.layout.runtime  # made by the socket units, which do not remove it
    for path in (*map(Path, reversed(removal.manifest.directories)), runtime):
        if not path.is_dir() or path.is_symlink():
            continue
        if not removal.steps.dry_run and any(path.iterdir()):
            removal.steps.note(f"{path} stays, for what is in it is not from install")
            continue
        removal.steps.attempt(f"remove {path}", path.rmdir)


def _reload(steps: Steps) -> None:
    steps.attempt("systemctl daemon-reload", lambda: services.systemctl("daemon-reload"))


def _restart(steps: Steps, found: OpenClaw, *, was_running: bool) -> None:
    unit, name = found.unit, found.account.name
    if was_running:
        steps.attempt(f"systemctl restart {unit}", lambda: services.change("restart", unit))
    if found.is_persons and openclaw.has_manager(found):
        reload = partial(openclaw.tell_persons_manager, found, "daemon-reload")
        steps.attempt(f"as {name}: systemctl --user daemon-reload", reload)
        steps.note(f"{name} has to restart OpenClaw: systemctl --user restart {unit}")


def _give_to_root(journal: Path) -> None:
    files.give_to_root(journal)
    journal.chmod(_PRIVATE)


def _remove_home(removal: Removal) -> None:
    """Last, because the commands above are in it. While something is left it stays, with the record of that."""
    layout, steps = removal.layout, removal.steps
    if steps.left and not removal.discard_changes:
        again = f"{layout.command('gatepass-broker')} install --undo"
        steps.note(f"{layout.home} stays for that: mend what is named below and run '{again}' again")
        return
    steps.attempt(f"remove {layout.home}", lambda: _remove_all(layout))


def _remove_all(layout: Layout) -> None:
    save(Manifest(), layout.manifest)  # if this is interrupted, nothing but this directory is left to undo
    shutil.rmtree(layout.releases, ignore_errors=True)
    layout.current.unlink(missing_ok=True)
    shutil.rmtree(layout.home)
