"""The moment at which something is decided: wall clock, boot clock and boot id, read together."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Moment(NamedTuple):
    """A point in time on this machine. Deciding code takes one as a value and reads no clock."""

    time: float
    """Seconds since the epoch; an administrator or NTP may step it."""
    boottime: float
    """Seconds of CLOCK_BOOTTIME; nobody can step it and it counts while the machine is suspended."""
    boot_id: str
    """The kernel's random id of this boot: 32 hexadecimal digits."""


def now() -> Moment:
    """Return the present moment."""
    return Moment(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), boot_id())


@cache
def boot_id() -> str:
    """Return the kernel's id of this boot. Source: random(4), /proc/sys/kernel/random/boot_id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", "")
