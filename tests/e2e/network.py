"""Being in the network of a booted machine, or of a container on it, with everything else as it is here."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from e2e.accounts import run_as
from e2e.openclaw_instance import Account

_CLONE_NEWNET = 0x40000000
_Result = TypeVar("_Result")


@contextmanager
def in_network(namespace: Path) -> Iterator[None]:
    """Let what this thread makes meanwhile, sockets above all, belong to a network namespace; they stay there."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(namespace)
        try:
            yield
        finally:
            _set(here)
    finally:
        os.close(here)


def run_in_network(namespace: Path, account: Account, function: Callable[..., _Result], *args: Any) -> _Result:
    """Return what `function(*args)` returns in a forked child that is `account`, in that network namespace."""
    with in_network(namespace):
        return run_as(account, function, *args)


def network_of(pid: int) -> Path:
    """Return the network namespace of a process."""
    return Path(f"/proc/{pid}/ns/net")


def _enter(namespace: Path) -> None:
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _set(descriptor)
    finally:
        os.close(descriptor)


def _set(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
