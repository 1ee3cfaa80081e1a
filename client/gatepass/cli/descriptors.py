"""The three descriptors that every process is supposed to have."""

from __future__ import annotations

import os


def hold_standard_descriptors() -> None:
    """Make sure that descriptors 0 to 2 are taken, so that no socket gets one of these numbers and is written to."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


def write_all(descriptor: int, data: bytes) -> None:
    """Write `data`. Raise `OSError`.

    At once and not through a buffer, whose failure Python would notice after the exit status is decided.
    """
    while data:
        data = data[os.write(descriptor, data) :]
