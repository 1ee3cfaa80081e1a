"""Having units run what is installed: started where they do not, restarted only where they run something else."""

from __future__ import annotations

from gatepass_broker.install import services
from gatepass_broker.install.commands import CommandError
from gatepass_broker.install.place import Work


def enable(work: Work, *units: str) -> None:
    """Have the units started at every boot."""
    missing = [unit for unit in units if not _is_enabled(unit)]
    if missing:
        names = " ".join(missing)
        work.steps.do(f"systemctl enable {names}", lambda: services.systemctl("enable", *missing))


def disable(work: Work, unit: str) -> None:
    """Stop a unit, and nothing that requires it, and have it started no more."""
    if _is_enabled(unit):  # first: whatever requires it by that would stop with it
        work.steps.do(f"systemctl disable {unit}", lambda: services.systemctl("disable", unit))
    if services.state(unit).running:
        work.steps.do(f"systemctl stop {unit}", lambda: services.change("stop", unit))


def ensure(
    work: Work, unit: str, fingerprint: str | None, *, service: str | None = None, bound: str | None = None
) -> str:
    """Have a unit run what `fingerprint` stands for (None: not known in a rehearsal). Return what was done, or ''.

    `service` requires `unit`, a socket: systemd starts no socket of a service that runs, but takes it along when that
    is restarted. `bound` is bound to it: systemd restarts that with it. What a unit runs is noted once it runs it, so a
    run that was interrupted is made up for by the next.
    """
    running, told = work.intention.manifest.running, unit
    along = f", and with it {bound}" if bound is not None and services.state(bound).running else ""
    if not services.state(unit).running:
        verb = "start"
        if service is not None and services.state(service).running:
            verb, told = "restart", service
    elif running.get(unit) != fingerprint:
        verb = "restart"
    else:
        return ""
    unless = "" if fingerprint else " (unless what it runs has not changed)"
    running.pop(unit, None)  # if this fails, somebody else may have it run what it ran before
    work.note()
    text = f"systemctl {verb} {told}{along}{unless}" if verb == "restart" else f"systemctl {verb} {told}"
    work.steps.do(text, lambda: services.change(verb, told))
    if fingerprint is not None:
        running[unit] = fingerprint
        work.note()
    return verb


def reload(work: Work, *units: str, is_due: bool) -> None:
    """Have systemd read unit files again if that is due, or was left out by a run that was interrupted."""
    if is_due or services.need_reload(*units):
        work.steps.do("systemctl daemon-reload", lambda: services.systemctl("daemon-reload"))


def _is_enabled(unit: str) -> bool:
    try:
        return services.systemctl("is-enabled", unit).strip() == "enabled"
    except CommandError:
        return False
