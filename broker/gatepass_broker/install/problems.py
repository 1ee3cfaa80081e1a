"""Everything that stands against an installation, found before anything is changed, and said in one go."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from gatepass.daemon.addresses import addresses_redirected_to
from gatepass.daemon.safe_paths import check_directory
from gatepass.errors import ConfigurationError
from gatepass.openclaw_setup.listeners import listener_on
from gatepass_broker.install.commands import printable
from gatepass_broker.install.configuration import check_broker_text, read_tables
from gatepass_broker.install.files import read, target_of
from gatepass_broker.install.layout import BROKER_ACCOUNT, GATEWAY_ACCOUNT, GATEWAY_SOCKET, LINKED, Layout
from gatepass_broker.install.manifest import Manifest
from gatepass_broker.install.observe import (
    BOOTED,
    find_account,
    free_bytes,
    has_library,
    interpreter_faults,
    nearest,
    systemd_version,
)
from gatepass_broker.install.openclaw import OpenClaw
from gatepass_broker.install.release import Blueprint
from gatepass_broker.install.request import Request
from gatepass_broker.install.services import state
from gatepass_broker.install.units import WantedFile

OLDEST_SYSTEMD: Final = 252
_NFT_LIBRARY: Final = "libnftables.so.1"
_SPARE_BYTES: Final = 64 * 2**20
_NO_PROXY: Final = "if there is no reverse proxy any more, say --no-reverse-proxy"
_SHOWN: Final = 60
"""Characters of a command line."""


class Intention(NamedTuple):
    """What is to be installed, as far as it can be known beforehand."""

    layout: Layout
    request: Request
    manifest: Manifest
    blueprint: Blueprint
    openclaw: OpenClaw | None
    files: tuple[WantedFile, ...]
    """All that everybody may read."""


def system_problems() -> Iterator[str]:
    """Yield what is wrong with the machine, or with who or what runs this."""
    yield from interpreter_faults()
    if os.geteuid() != 0:
        yield "only root can install services: run this with sudo"
    else:  # what lies beside this command runs as root, now and as a service
        yield from _error(check_directory, Path(sys.prefix))
    if not BOOTED.is_dir():
        yield "this machine was not booted with systemd; start gatepass-broker and gatepass-gateway by hand, see --help"
        return
    version = systemd_version()
    if version is None or version < OLDEST_SYSTEMD:
        found = "no version that it tells" if version is None else f"{version}"
        yield f"systemd is {found}, and the units need {OLDEST_SYSTEMD} or later"


def account_problems(request: Request) -> Iterator[str]:
    """Yield what is wrong with the accounts that are named."""
    for name in request.accounts:
        if find_account(name) is None:
            yield f"there is no user '{name}'"
        if name in (BROKER_ACCOUNT, GATEWAY_ACCOUNT):
            yield f"no program but gatepass's own may run as {name}; name another account"
    for proxy in request.proxies:
        if find_account(proxy.user) is None:
            yield f"there is no user '{proxy.user}', as whom a reverse proxy would run; {_NO_PROXY}"
        elif proxy.unit is None and proxy.user in request.accounts:
            yield (
                f"{proxy.user} asks for tokens and is the account of a reverse proxy too; name the unit of that, "
                f"--reverse-proxy {proxy.user}:UNIT, so that the two can be told apart"
            )


def problems(intention: Intention) -> list[str]:
    """Return what else stands against an installation; nothing if it can begin."""
    return [
        *_space(intention.layout, intention.blueprint),
        *_places(intention.layout),
        *_file_systems(intention.layout),
        *_foreign_files(intention.files, intention.manifest),
        *_foreign_links(intention.layout),
        *_configuration(intention.layout, intention.request),
        *(_openclaw_problems(intention, intention.openclaw) if intention.openclaw else ()),
    ]


def _space(layout: Layout, plan: Blueprint) -> Iterator[str]:
    needed = 2 * plan.size + _SPARE_BYTES  # byte code is about as large as what it is made from
    if (free := free_bytes(layout.home)) < needed:
        yield f"{layout.home}: there are {free >> 20} MiB free, and {needed >> 20} are needed"


def _places(layout: Layout) -> Iterator[str]:
    """Services trust what lies in these directories."""
    for directory in (layout.home.parent, layout.config.parent):
        if directory.exists():
            yield from _error(check_directory, directory)


def _file_systems(layout: Layout) -> Iterator[str]:
    for place in (layout.home, layout.config, layout.units, layout.links, layout.journal):
        flags = os.statvfs(nearest(place)).f_flag
        if flags & os.ST_RDONLY:
            yield f"{place}: the file system there is read-only; make it writable: mount -o remount,rw MOUNTPOINT"
        if place == layout.home and flags & os.ST_NOEXEC:
            yield (
                f"{place}: the file system there is mounted noexec, and the services run from it; "
                "mount it otherwise: mount -o remount,exec MOUNTPOINT"
            )


def _foreign_files(wanted: Iterable[WantedFile], manifest: Manifest) -> Iterator[str]:
    for file in wanted:
        if str(file.path) in manifest.files:
            continue
        if file.path.is_symlink() or read(file.path) not in (None, file.content):
            yield f"{file.path} is there already, and not from this command; move it away"


def _foreign_links(layout: Layout) -> Iterator[str]:
    for name in LINKED:
        path = layout.links / name
        if target_of(path) not in (None, str(layout.command(name))) or (path.exists() and not path.is_symlink()):
            yield f"{path} is there already, and not from this command; remove it, or move it away"


def _configuration(layout: Layout, request: Request) -> Iterator[str]:
    for path in (layout.config, layout.broker_config, layout.gateway_config):
        if path.is_symlink():
            yield f"{path} is a symbolic link, which the services do not follow; put the file itself there"
            return
    if not layout.broker_config.exists():
        yield from _error(check_broker_text, request)
    if request.openclaw_user:
        path = layout.gateway_config
        yield from _error(read_tables, read(path), str(path))


def _openclaw_problems(intention: Intention, openclaw: OpenClaw) -> Iterator[str]:
    if not has_library(_NFT_LIBRARY):
        yield f"{_NFT_LIBRARY} is missing, which makes the redirect; on Debian: apt-get install nftables"
    yield from _port(intention.request.proxy_port)
    yield from _reverse_proxy_units(intention.request)
    yield from _other_openclaw(intention)
    if openclaw.is_persons:
        yield from _persons_unit(intention, openclaw)
    else:
        yield from _system_unit(openclaw, intention.request)


def _port(port: int) -> Iterator[str]:
    listener = next(filter(None, (listener_on(port, address) for address in addresses_redirected_to())), None)
    if listener is None or (listener.uid == 0 and state(GATEWAY_SOCKET).running):
        return
    program = f" ({printable(listener.program)[:_SHOWN]})" if listener.program else ""
    yield (
        f"port {port}, which the proxy is to have, is taken by a program of uid {listener.uid}{program}; stop that, or "
        "give the proxy another one, --port PORT"
    )


def _reverse_proxy_units(request: Request) -> Iterator[str]:
    for proxy in request.proxies:
        if proxy.unit is not None and not state(proxy.unit).loaded:
            yield (
                f"there is no system unit {proxy.unit}, from which alone {proxy.user} could be a reverse proxy; "
                f"'systemctl list-units --type=service' shows those that there are; {_NO_PROXY}"
            )


def _other_openclaw(intention: Intention) -> Iterator[str]:
    """What was changed in an OpenClaw's configuration is known of one at a time."""
    earlier, now = intention.manifest.request, intention.request
    if not intention.manifest.openclaw_set_up or find_account(earlier.openclaw_user or "") is None:
        return
    if _identity(earlier) != _identity(now):
        yield (
            f"gatepass is set up for the OpenClaw of {earlier.openclaw_user}, and this is another one; take that back "
            "first: gatepass-broker install --undo"
        )


def _identity(request: Request) -> tuple[str | None, ...]:
    return request.openclaw_user, request.openclaw_config, request.openclaw_state_dir


def _persons_unit(intention: Intention, openclaw: OpenClaw) -> Iterator[str]:
    # Of one that is set up it may not be possible to learn: its person is not logged in.
    is_known = intention.manifest.openclaw_set_up and intention.manifest.request.unit == openclaw.unit
    if openclaw.has_unit or intention.request.manager == "person" or is_known:
        return
    yield (
        f"there is no unit {openclaw.unit}, neither the system's nor one of {openclaw.account.name}'s own; name "
        "OpenClaw's with --openclaw-unit UNIT, or say --person if it has none yet ('openclaw gateway install' makes it)"
    )


def _system_unit(openclaw: OpenClaw, request: Request) -> Iterator[str]:
    unit = state(openclaw.unit)
    if not unit.loaded:
        yield (
            f"there is no system unit {openclaw.unit}; name OpenClaw's with --openclaw-unit UNIT, or say --person if "
            "it runs under the service manager of its user"
        )
    elif _uid(unit.user or "root") != openclaw.account.uid:
        yield (
            f"{openclaw.unit} runs as {unit.user or 'root'}, not as {request.openclaw_user}; name that account with "
            "--openclaw-user"
        )


def _uid(user: str) -> int | None:
    """`User=` of a unit is a name or a number."""
    if user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def _error(check: Callable[..., object], *arguments: object) -> Iterator[str]:
    try:
        check(*arguments)
    except ConfigurationError as error:
        yield error.message
