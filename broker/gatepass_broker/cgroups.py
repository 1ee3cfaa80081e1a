"""What the path of a cgroup says: units, slices, the user's own manager, the container. No I/O.

Only a directory that lies below nothing but slices is what its name says, because PID 1 alone makes slices of the
system and what is in them. Below a service or scope, whoever that was delegated to makes directories of any name: below
`user@1000.service` that is the user's manager, whose units are told apart from the system's here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from gatepass_broker.caller import Cgroup
from gatepass_broker.names import UNIT_TYPES

_UNIT: Final = re.compile(rf"[A-Za-z0-9:_.\\-][A-Za-z0-9:_.\\@-]*\.(?:{'|'.join(UNIT_TYPES)})", re.ASCII)
"""systemd.unit(5): what a unit of these types can be called."""
_USER_MANAGER: Final = re.compile(r"user@(0|[1-9][0-9]{0,9})\.service", re.ASCII)
_SLICE: Final = ".slice"
_LONGEST_NAME: Final = 255
_NO_UID: Final = 2**32 - 1

_CONTAINER_SCOPE: Final = re.compile(r"(?:docker|libpod|cri-containerd|crio)-([0-9a-f]{64})\.scope", re.ASCII)
# Where the runtime makes its cgroups itself (the 'cgroupfs' driver): in the root, where only root can.
_CONTAINER_PATH: Final = re.compile(
    r"/(?:docker/|libpod_parent/libpod-|kubepods(?:/burstable|/besteffort)?/pod[0-9A-Za-z_-]+/(?:crio-)?)([0-9a-f]{64})"
    r"(?:/.*)?",
    re.ASCII,
)


def locate(cgroup: int, path: str) -> tuple[Cgroup, str] | None:
    """Return the cgroup with that id at `path`, and the path of its innermost unit's own cgroup, or else its own.

    None for what is no path from the root of the hierarchy that is seen here (cgroup_namespaces(7)), and for one that
    cannot be shown to people. `unit_id` is left unknown.
    """
    names = path.split("/")[1:] if path != "/" else []
    if not path.startswith("/") or not path.isprintable() or not {"", ".", ".."}.isdisjoint(names):
        return None
    slices, rest = _leading_slices(names)
    unit = _unit(rest)
    if unit is None:
        return Cgroup(cgroup, path, slices=slices, container=_matched(_CONTAINER_PATH, path)), path
    container = _matched(_CONTAINER_SCOPE, unit)
    found = Cgroup(cgroup, path, unit, slices, container=container)
    rest = rest[1:]
    manager_uid = int(_matched(_USER_MANAGER, unit) or _NO_UID)
    if manager_uid < _NO_UID:
        user_slices, below = _leading_slices(rest)
        user_unit = _unit(below)
        found = found._replace(manager_uid=manager_uid, user_unit=user_unit, user_slices=user_slices)
        if user_unit is not None:
            rest = below[1:]
    return found, "/" + "/".join(names[: len(names) - len(rest)])


def _leading_slices(names: Sequence[str]) -> tuple[tuple[str, ...], Sequence[str]]:
    """Return the slices that `names` begin with, and the other names."""
    count = next((place for place, name in enumerate(names) if not name.endswith(_SLICE)), len(names))
    return tuple(map(_unescape, names[:count])), names[count:]


def _unit(names: Sequence[str]) -> str | None:
    """Return the unit that the first of `names` is the cgroup of, if it is one's."""
    name = _unescape(names[0]) if names else ""
    return name if len(name) <= _LONGEST_NAME and _UNIT.fullmatch(name) else None


def _unescape(name: str) -> str:
    """Undo what systemd does to a unit whose name would clash with a file of the cgroup file system (cg_escape)."""
    return name.removeprefix("_")


def _matched(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.fullmatch(text)
    return match[1] if match else None
