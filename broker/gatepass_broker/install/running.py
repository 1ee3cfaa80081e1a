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


def ensure(work: Work, unit: str, fingerprint: str | None) -> str:
    """Have a unit run what `fingerprint` stands for (None: not known in a rehearsal). Return what was done, or ''.

    What it runs is noted once it runs it, so a run that was interrupted is made up for by the next.
    """
    running = work.intention.manifest.running
    if not services.state(unit).running:
        verb = "start"
    elif running.get(unit) != fingerprint:
        verb = "restart"
    else:
        return ""
    unless = "" if fingerprint else " (unless what it runs has not changed)"
    work.steps.do(f"systemctl {verb} {unit}{unless if verb == 'restart' else ''}", lambda: services.change(verb, unit))
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
