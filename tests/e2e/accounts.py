"""Running test code as another user of the machine."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from e2e.openclaw_instance import Account

_Result = TypeVar("_Result")


def run_as(account: Account, function: Callable[..., _Result], *args: Any) -> _Result:
    """Return what `function(*args)` returns in a forked child that is `account`.

    A fork keeps the modules that are loaded: the other user need not be able to read the checkout, or Python itself.
    """
    "localhost".encode("idna")  # loads what `getaddrinfo` needs and would only load in the child
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        _report(writable, account, function, args)
    os.close(writable)
    with os.fdopen(readable, "rb") as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    succeeded, value = pickle.loads(answer)
    if not succeeded:
        raise AssertionError(f"as uid {account.uid}: {value}")
    result: _Result = value
    return result


def _report(writable: int, account: Account, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Run in the child, which ends here whatever happens: it must never return into pytest."""
    try:
        become(account)
        answer = (True, function(*args))
    except BaseException:  # noqa: BLE001 - told to the parent
        answer = (False, traceback.format_exc())
    try:
        with os.fdopen(writable, "wb") as stream:
            stream.write(pickle.dumps(answer))
    finally:
        sys.stdout.flush()
        os._exit(0)


def as_account(account: Account) -> dict[str, Any]:
    """Return the arguments that make `subprocess` run a command as `account`."""
    if account.uid == os.geteuid():
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def become(account: Account) -> None:
    """Give up this process's own user for good."""
    if account.uid == os.geteuid():
        return
    os.setgroups([])
    os.setgid(account.gid)
    os.setuid(account.uid)
