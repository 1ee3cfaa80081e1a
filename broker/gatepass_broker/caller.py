"""Who is calling, as a value. How it is learned is in `peer`."""

from __future__ import annotations

from typing import NamedTuple


class Cgroup(NamedTuple):
    """Where a process runs, by its cgroup (v2). What is below a unit is that unit's own business."""

    id: int
    """The inode of its directory: given to no other cgroup until the next boot."""
    path: str
    """From the root of the hierarchy, `/system.slice/openclaw.service`."""
    unit: str | None = None
    """The system manager's unit that it is or lies in: a service, scope, socket or the like, never a slice."""
    slices: tuple[str, ...] = ()
    """The system manager's slices that the unit lies in, outermost first."""
    manager_uid: int | None = None
    """The user whose own manager it lies under (`user@UID.service`), if it does."""
    user_unit: str | None = None
    """That manager's unit, which its user can name as they like."""
    user_slices: tuple[str, ...] = ()
    """That manager's slices, outermost first."""
    container: str | None = None
    """The id of the container, 64 hexadecimal digits, where the system's manager or cgroup root has one."""
    unit_id: int | None = None
    """The id of the innermost unit's own cgroup, which is this one or above it; this one's where there is no unit."""

    @property
    def unit_name(self) -> str | None:
        """The innermost unit as people and tokens name it: `openclaw.service`, `user@1000.service/tui.scope`."""
        if self.unit is not None and self.user_unit is not None:
            return f"{self.unit}/{self.user_unit}"
        return self.unit


class Caller(NamedTuple):
    """The process that opened a connection. None is 'unknown', and unknown matches no rule."""

    uid: int | None
    gid: int | None
    groups: frozenset[int]
    """Supplementary groups, as they were at connect."""
    pid: int | None
    process: int | None
    """Inode of the process in pidfs (Linux 6.9): never used again until the next boot, unlike a pid."""
    cgroup: Cgroup | None = None
    nested: bool | None = None
    """Whether it runs in a pid namespace beneath the broker's own, as most containers do."""
    unsettled: bool = False
    """Whether `cgroup` and `nested` are unknown only for now, and can be known on the caller's next connection: the
    kernel is old and the process too young to be told from one that had its pid before, or its cgroup was not looked
    for where /proc hides the process, because others had just made us look for theirs."""
