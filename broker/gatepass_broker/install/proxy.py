"""The proxy and the redirect in front of an OpenClaw, and OpenClaw tied to them.

OpenClaw is bound to the redirect: whoever restarts that restarts OpenClaw. So an upgrade leaves the redirect alone
unless its rules, its unit or its own code are other ones; broker and proxy are restarted, and their sockets stay.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from gatepass.daemon.addresses import addresses_redirected_to
from gatepass.openclaw_setup.listeners import users_listening
from gatepass_broker.install import files, openclaw, release, services
from gatepass_broker.install.commands import CommandError, run, shown
from gatepass_broker.install.configuration import (
    check_openclaw_port,
    from_setup,
    gateway_tables,
    gateway_text,
    read_tables,
)
from gatepass_broker.install.layout import GATEWAY_ACCOUNT, GATEWAY_SERVICE, GATEWAY_SOCKET, REDIRECT_SERVICE, Layout
from gatepass_broker.install.manifest import digest
from gatepass_broker.install.observe import find_group, first_unprivileged_port, lets_programs_attach
from gatepass_broker.install.openclaw import OpenClaw, SetUp
from gatepass_broker.install.place import Work, make_directory, place
from gatepass_broker.install.running import enable, ensure, reload
from gatepass_broker.install.units import WantedFile, openclaw_drop_ins, port_drop_in, shipped

_MODE: Final = 0o640
"""The name of the identity header is in it, which is for nobody but the proxy."""

_OWN_CODE: Final = ("gatepass_gateway/redirect/*.py", "gatepass/daemon/*.py")
"""Of the redirect, once it runs; what reads its configuration shows in its rules."""


def install_proxy(work: Work, found: OpenClaw, *, is_new_member: bool) -> None:
    """Set OpenClaw up, and put proxy and redirect in front of it. Raise `GatepassError`, `OSError`.

    `is_new_member` says that its account may ask the broker only since now, and has been told what that takes.
    """
    warn_of_attaching(work)
    warn_of_open_port(work)
    content = _configure(work, found)
    redirect = _run(work, content, None if found.is_persons else found.unit)
    # Not before the redirect runs: systemd would stop OpenClaw as soon as it knows what that is bound to.
    tied = openclaw_drop_ins(work.intention.layout, found.unit, found.manager)
    is_new = _place_all(work, tied, () if found.is_persons else (found.unit, REDIRECT_SERVICE))
    wanted = None if content is None else services.fingerprint(*(file.content for file in tied))
    taken_along = redirect == "restart" and not is_new and not found.is_persons
    is_due = wanted is None or work.intention.manifest.running.get(found.unit) != wanted
    if found.is_persons and is_due:
        _tell_person(work, found, is_new_member=is_new_member)
    elif is_due and not taken_along:
        _restart_openclaw(work, found, is_sure=wanted is not None)
    if is_due or taken_along:
        work.steps.note(f"once OpenClaw has started again, as {found.account.name}: gatepass openclaw check")
    if wanted is not None:
        work.intention.manifest.running[found.unit] = wanted
    units = (GATEWAY_SOCKET, GATEWAY_SERVICE, REDIRECT_SERVICE)
    work.steps.do(f"look whether {', '.join(units)} are active", lambda: services.check_active(*units))


def warn_of_attaching(work: Work) -> None:
    """Say where a reverse proxy's unit does not tell it apart: what else its account runs can get into it."""
    for proxy in work.intention.request.proxies:
        if proxy.unit is not None and lets_programs_attach():
            work.steps.note(
                f"other programs of {proxy.user} can attach to {proxy.unit} and bring identities as it does "
                "(kernel.yama.ptrace_scope is 0, or missing): set it to 1, in a file in /etc/sysctl.d, or let nothing "
                f"else run as {proxy.user}"
            )


def warn_of_open_port(work: Work) -> None:
    """Say where anybody can take the proxy's port before its socket is there, and keep it from being there."""
    port, first = work.intention.request.proxy_port, first_unprivileged_port()
    if port >= first:
        work.steps.note(
            f"any user can take port {port} while {GATEWAY_SOCKET} is stopped, and keep it from starting "
            f"(net.ipv4.ip_unprivileged_port_start is {first}); give the proxy one below, --port PORT, or raise that"
        )


def _run(work: Work, content: bytes | None, bound: str | None) -> str:
    """Have proxy and redirect run with a configuration (None: not known in a rehearsal).

    Return what was done to the redirect, to which the unit `bound` is bound.
    """
    port = port_drop_in(work.intention.layout, work.intention.request, addresses_redirected_to())
    _place_all(work, port, (GATEWAY_SOCKET,))
    enable(work, GATEWAY_SOCKET, REDIRECT_SERVICE)
    ensure(work, GATEWAY_SOCKET, services.fingerprint(shipped(GATEWAY_SOCKET), *(file.content for file in port)))
    ensure(work, GATEWAY_SERVICE, _of_gateway(work, content))
    return ensure(work, REDIRECT_SERVICE, _of_redirect(work, content), bound=bound)


def _place_all(work: Work, wanted: tuple[WantedFile, ...], units: tuple[str, ...]) -> bool:
    """Put the drop-ins of `units` in their places. Return whether any was new."""
    changed = [place(work, path, content) for path, content in wanted]
    reload(work, *units, is_due=any(changed))
    return any(changed)


def _configure(work: Work, found: OpenClaw) -> bytes | None:
    """Make both configurations, OpenClaw's and the proxy's. Return the proxy's; None in a rehearsal."""
    layout, request = work.intention.layout, work.intention.request
    work.intention.manifest.openclaw_set_up = True
    work.intention.manifest.openclaw_uid = found.account.uid
    work.note()
    made: list[SetUp] = []
    command = shown(("gatepass", *openclaw.setup_arguments(found, request), "--write"))
    work.steps.do(f"as {found.account.name}: {command}", lambda: made.append(openclaw.set_up(layout, found, request)))
    if not made:
        work.steps.do(f"write {layout.gateway_config} from what that has chosen", lambda: None)
        return None
    if made[0].is_new:  # OpenClaw has to be restarted for that, if not by this run then by the next
        work.intention.manifest.running.pop(found.unit, None)
        work.note()
    for note in made[0].notes:
        work.steps.note(note)
    content = _proxy_text(work, found, made[0].proxy_text)
    _place_configuration(work, content)
    return content


def _proxy_text(work: Work, found: OpenClaw, written: str) -> bytes:
    path, request, uid = work.intention.layout.gateway_config, work.intention.request, found.account.uid
    chosen = from_setup(written, str(request.loopback_user))
    check_openclaw_port(chosen.openclaw_port, request, uid, users_listening(chosen.openclaw_port))
    existing = files.read(path)
    before = read_tables(existing, str(path))
    tables = gateway_tables(before, chosen, request, uid, addresses_redirected_to())
    return gateway_text(existing, tables, before)


def _place_configuration(work: Work, content: bytes) -> None:
    layout, path = work.intention.layout, work.intention.layout.gateway_config
    group, noted = find_group(GATEWAY_ACCOUNT), work.intention.manifest.files
    make_directory(work, path.parent)
    _check(layout, content)  # also what is there already: an operator may have changed it, and restarted nothing
    if files.is_as(path, content, _MODE, group):
        return
    _keep_remarks(work, content, group)
    if not path.exists() or str(path) in noted:
        noted[str(path)] = digest(content)
        work.note()
    else:
        work.steps.note(f"{path} was there before, and stays when gatepass is removed")
    work.steps.do(f"write {path}", lambda: files.write(path, content, _MODE, group))


def _keep_remarks(work: Work, content: bytes, group: int | None) -> None:
    """Keep a copy of what an operator has changed: written anew it has the same keys, and no remarks."""
    path, kept = work.intention.layout.gateway_config, work.intention.layout.gateway_config_before
    existing = files.read(path)
    if existing not in (None, content) and not work.intention.manifest.is_own(path, existing):
        place(work, kept, existing, _MODE, group)
        work.steps.note(
            f"{path} is written anew: what you added there stays, and as it was, with remarks, it is {kept}"
        )


def _check(layout: Layout, content: bytes) -> None:
    """Have both programs look at a configuration before it becomes theirs. Raise `CommandError`."""
    staged = files.stage(layout.gateway_config, content, 0o600)
    try:
        for command in ("gatepass-gateway", "gatepass-redirect"):
            run(layout.command(command), "--config", staged, "--check")
    except CommandError as error:
        raise CommandError(error.message.replace(str(staged), str(layout.gateway_config))) from None
    finally:
        staged.unlink(missing_ok=True)


def _of_gateway(work: Work, content: bytes | None) -> str | None:
    name = work.intention.blueprint.name
    return None if content is None else services.fingerprint(name, shipped(GATEWAY_SERVICE), content)


def _of_redirect(work: Work, content: bytes | None) -> str | None:
    """What the redirect runs: its rules, its unit and its code, and none of the rest of the release."""
    if content is None:
        return None
    layout = work.intention.layout
    rules = run(layout.command("gatepass-redirect"), "--config", layout.gateway_config, "--print")
    packages = release.site_packages(layout.current)
    code = [path.read_bytes() for pattern in _OWN_CODE for path in sorted(packages.glob(pattern))]
    return services.fingerprint(rules, shipped(REDIRECT_SERVICE), *code)


def _restart_openclaw(work: Work, found: OpenClaw, *, is_sure: bool) -> None:
    if services.state(found.unit).running:
        unless = "" if is_sure else " (unless its configuration has not changed)"
        work.steps.do(f"systemctl restart {found.unit}{unless}", lambda: services.change("restart", found.unit))
    else:
        work.steps.note(f"{found.unit} does not run: start it; from now on it is started with the redirect too")


def _tell_person(work: Work, found: OpenClaw, *, is_new_member: bool) -> None:
    """What a person's own manager runs is theirs to restart."""
    if not openclaw.has_manager(found):
        return
    name, again = found.account.name, partial(openclaw.tell_persons_manager, found, "daemon-reload")
    work.steps.do(f"as {name}: systemctl --user daemon-reload", again)
    if not is_new_member:  # who is has been told to restart more than this
        work.steps.note(f"{name} has to restart OpenClaw: systemctl --user restart {found.unit}")
