"""Installing, in an order in which a failure at any point leaves the services of before as they are, or says so."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from gatepass.paths import ADMIN_SOCKET
from gatepass_broker.install import accounts, openclaw, release, services
from gatepass_broker.install.commands import run
from gatepass_broker.install.configuration import ADMIN_TABLE, broker_text, has_socket, loopback_user_in
from gatepass_broker.install.files import read
from gatepass_broker.install.layout import (
    ADMIN_SOCKET_UNIT,
    BROKER_SERVICE,
    BROKER_SOCKET,
    BROKER_SOCKETS,
    LINKED,
)
from gatepass_broker.install.manifest import digest
from gatepass_broker.install.place import Work, make_directory, place, place_link, remove_stale
from gatepass_broker.install.proxy import install_proxy
from gatepass_broker.install.running import disable, enable, ensure, reload
from gatepass_broker.install.units import accounts_file, shipped, unit_files

_COPY: Final = "make {directory} (gatepass {version} and the {others} packages that it needs, copied from this one)"


def install(work: Work) -> None:
    """Make the machine what `work` intends. Raise `GatepassError`, `OSError`: what is made until then is on record."""
    _make_release(work)
    _rehearse_setup(work)
    _make_accounts(work)
    _configure_broker(work)
    _switch(work)
    _place_units(work)
    added = _add_members(work)
    _run_broker(work)
    if (found := work.intention.openclaw) is not None:
        install_proxy(work, found, is_new_member=found.account.name in added)
    _remove_old_releases(work)
    work.note()


def _make_release(work: Work) -> None:
    layout, plan = work.intention.layout, work.intention.blueprint
    if not work.steps.dry_run:
        release.make_places(layout)
    work.intention.manifest.request = work.intention.request
    work.note()
    if not release.is_complete(layout, plan.name):
        what = _COPY.format(directory=layout.releases / plan.name, version=plan.version, others=plan.distributions - 1)
        work.steps.do(what, lambda: release.make(layout, plan))


def _rehearse_setup(work: Work) -> None:
    """What most often goes wrong, an OpenClaw that cannot be set up, shows before any service is touched."""
    found, request = work.intention.openclaw, work.intention.request
    if found is None or work.intention.manifest.openclaw_set_up:
        return
    directory = work.intention.layout.releases / work.intention.blueprint.name
    what = f"as {found.account.name}: gatepass openclaw setup, to see whether it can be done"
    work.steps.do(what, lambda: openclaw.rehearse(directory, found, request))


def _make_accounts(work: Work) -> None:
    path, content = accounts_file(work.intention.layout)
    place(work, path, content)
    noted, users, groups = work.intention.manifest, accounts.missing_users(), accounts.missing_groups()
    if users or groups:
        noted.users = [*dict.fromkeys((*noted.users, *users))]
        noted.groups = [*dict.fromkeys((*noted.groups, *groups))]
        work.note()
        what = f"make the users ({', '.join(users) or 'none'}) and groups ({', '.join(groups) or 'none'})"
        work.steps.do(what, lambda: run("systemd-sysusers", path))


def _configure_broker(work: Work) -> None:
    layout, path = work.intention.layout, work.intention.layout.broker_config
    content, found = broker_text(work.intention.request).encode(), read(path)
    if found is None:
        place(work, path, content)
    elif work.intention.manifest.files.get(str(path)) != digest(content):
        _tell_that_it_stays(work, path, found)
    make_directory(work, layout.broker_rules)
    command = layout.releases / work.intention.blueprint.name / "bin" / "gatepass-broker"
    work.steps.do(f"check {path}", lambda: run(command, "--config", path, "--check"))


def _tell_that_it_stays(work: Work, path: Path, found: bytes) -> None:
    wanted, there = work.intention.request.loopback_user, loopback_user_in(found, str(path))
    work.steps.note(
        f"{path} is yours and stays as it is; it may lack what a new one would have, such as a [[rule]] for whom "
        "you name now, or 'reconnect' in it"
    )
    if there != wanted:
        work.steps.note(
            f"{path} says loopback_user = {there!r}, and that is who local programs are, not {wanted!r}, until you "
            f"change it there: systemctl reload {BROKER_SERVICE}"
        )


def _switch(work: Work) -> None:
    layout, name = work.intention.layout, work.intention.blueprint.name
    if release.current(layout) != name:
        work.steps.do(f"let {layout.current} be {name}", lambda: release.switch(layout, name))
    for command in LINKED:
        place_link(work, layout.links / command, layout.command(command))


def _place_units(work: Work) -> None:
    layout, wanted = work.intention.layout, unit_files(work.intention.layout, work.intention.request)
    changed = [file.path.name for file in wanted if place(work, *file)]
    for unit in changed:  # whatever it was, and whatever runs now
        work.intention.manifest.running.pop(unit, None)
    configurations = (layout.broker_config, layout.gateway_config, layout.gateway_config_before)
    kept = {*configurations, *(file.path for file in work.intention.files)}
    is_due = remove_stale(work, kept) or bool(changed)
    reload(work, *(file.path.name for file in wanted), is_due=is_due)


def _add_members(work: Work) -> list[str]:
    """Return who is new in the group."""
    noted = work.intention.manifest
    added = [name for name in work.intention.request.accounts if not accounts.is_member(name)]
    for name in added:
        noted.members = [*dict.fromkeys((*noted.members, name))]
        if (found := work.intention.openclaw) is not None and found.account.name == name:
            noted.running.pop(found.unit, None)  # it runs without the group
        work.note()
        work.steps.do(f"put {name} into the group that may ask", partial(accounts.add_member, name))
        work.steps.note(_not_yet_a_member(work, name))
    return added


def _not_yet_a_member(work: Work, name: str) -> str:
    found = work.intention.openclaw
    what = f"{name} may ask the broker now, but programs that run already do not know it"
    if found is None or found.account.name != name:
        return f"{what}: log out and in again"
    if found.is_persons:
        return (
            f"{what}, OpenClaw among them: `systemctl restart user@{found.account.uid}.service`, which ends all "
            f"that the service manager of {name} runs and starts it again; and log out and in again"
        )
    return f"{what}; {found.unit} is restarted, everything else of that account is for you"


def _run_broker(work: Work) -> None:
    sockets = _sockets(work)
    enable(work, *sockets)
    for unit in sockets:
        ensure(work, unit, services.fingerprint(shipped(unit)), service=BROKER_SERVICE)
    ensure(work, BROKER_SERVICE, services.fingerprint(work.intention.blueprint.name, shipped(BROKER_SERVICE)))
    work.steps.do("wait until the broker answers", lambda: services.wait_for_broker(BROKER_SOCKET))


def _sockets(work: Work) -> tuple[str, ...]:
    """Return the socket units that the broker's configuration has a use for; it refuses to start with any other.

    A configuration that was written before there was a socket for administrators is the operator's, and stays as it is.
    """
    path = work.intention.layout.broker_config
    content = read(path) or broker_text(work.intention.request).encode()  # in a rehearsal it may not be there
    if has_socket(content, str(path), ADMIN_SOCKET):
        return BROKER_SOCKETS
    disable(work, ADMIN_SOCKET_UNIT)
    work.steps.note(
        f"{path} is yours and has no socket for administrators, so nobody can revoke, lock, list sessions, or have "
        f"others explained. For one add these lines there, and run this again:\n\n{ADMIN_TABLE}"
    )
    return tuple(unit for unit in BROKER_SOCKETS if unit != ADMIN_SOCKET_UNIT)


def _remove_old_releases(work: Work) -> None:
    for directory in release.dispensable(work.intention.layout):
        work.steps.do(f"remove {directory}", partial(release.remove, directory))
