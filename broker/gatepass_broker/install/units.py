"""The files that make services of gatepass: those that come with it, and the few lines that depend on the machine."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final, NamedTuple

from gatepass.daemon.addresses import REDIRECTED_TO
from gatepass_broker.install.layout import (
    BROKER_SERVICE,
    BROKER_SOCKETS,
    GATEWAY_SERVICE,
    GATEWAY_SOCKET,
    REDIRECT_SERVICE,
    Layout,
)
from gatepass_broker.install.request import DEFAULT_PORT, ManagerName, Request

_BROKER_UNITS: Final = (*BROKER_SOCKETS, BROKER_SERVICE)
_GATEWAY_UNITS: Final = (GATEWAY_SOCKET, GATEWAY_SERVICE, REDIRECT_SERVICE)


class WantedFile(NamedTuple):
    """A file that everybody may read."""

    path: Path
    content: bytes


def shipped(name: str) -> bytes:
    """Return a file of those that come with gatepass, such as `gatepass-broker.service`. Raise `OSError`."""
    return _shipped_directory().joinpath(name).read_bytes()


def unit_files(layout: Layout, request: Request) -> tuple[WantedFile, ...]:
    """Return the units that `request` asks for."""
    names = (*_BROKER_UNITS, *(_GATEWAY_UNITS if request.openclaw_user else ()))
    return tuple(WantedFile(layout.units / name, shipped(name)) for name in names)


def accounts_file(layout: Layout) -> WantedFile:
    """Return what systemd-sysusers makes the accounts from."""
    return WantedFile(layout.sysusers, shipped("sysusers.d/gatepass.conf"))


def port_drop_in(layout: Layout, request: Request, addresses: tuple[str, ...]) -> tuple[WantedFile, ...]:
    """Return the drop-in for the proxy's port; none where the unit is right as it comes.

    `addresses` are those of the machine on which the proxy listens.
    """
    if request.proxy_port == DEFAULT_PORT and addresses == REDIRECTED_TO:
        return ()
    shown = (f"[{address}]" if ":" in address else address for address in addresses)
    lines = "".join(f"ListenStream={address}:{request.proxy_port}\n" for address in shown)
    return (WantedFile(layout.drop_in(GATEWAY_SOCKET, "port"), f"[Socket]\nListenStream=\n{lines}".encode()),)


def openclaw_drop_ins(layout: Layout, unit: str, manager: ManagerName) -> tuple[WantedFile, ...]:
    """Return the drop-ins that tie OpenClaw's unit to the redirect."""
    if manager == "person":
        return (WantedFile(layout.drop_in(unit, "gatepass", "user"), shipped("openclaw/user.conf")),)
    # OpenClaw stops with the redirect, so it has to come back with it.
    back = f"[Unit]\nWants={unit}\n"
    return (
        WantedFile(layout.drop_in(unit, "gatepass"), shipped("openclaw/system.conf")),
        WantedFile(layout.drop_in(REDIRECT_SERVICE, "openclaw"), back.encode()),
    )


def _shipped_directory() -> Traversable:
    """The wheel has them in the package; a checkout beside it."""
    installed = files("gatepass_broker").joinpath("units")
    return installed if installed.is_dir() else Path(__file__).parents[3].joinpath("systemd")
