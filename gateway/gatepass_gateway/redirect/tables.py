"""Both tables in force: made in one transaction, looked at, and the guard made again."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from typing import Final, NoReturn, Self

from gatepass.errors import ErrorCode, GatepassError
from gatepass_gateway.redirect.nft import Nft, NftError
from gatepass_gateway.redirect.rules import (
    FIRST_FILTER,
    GUARD,
    HELD,
    RedirectSettings,
    both_tables,
    guard_table,
    no_guard,
)

_OWNED: Final = re.compile(r"^\s*flags [a-z,]*\bowner\b", re.MULTILINE)
_HOLDERS_NAME: Final = re.compile(r" # progname .*")
_OLD_KERNEL: Final = f"it takes nftables in the kernel, Linux 5.12 or later; this is {os.uname().release}"
_CURES: Final = {
    "not supported": _OLD_KERNEL,
    "invalid argument": _OLD_KERNEL,
    "no such file": "a part of nftables is missing in this kernel; it takes nft_chain_nat, nft_redir, nft_fib_inet, "
    "nft_ct and nft_reject_inet",
    "syntax error": "it takes nftables 1.0 or later",
    "unknown table option": "it takes nftables 1.0 or later",
}
_BUSY: Final = f"another gatepass-redirect holds the table 'inet {HELD}'; stop it first"


class LostError(GatepassError):
    """The table that nobody else can change is gone, or is not what it was."""

    def __init__(self) -> None:
        super().__init__(
            ErrorCode.INTERNAL,
            f"the table 'inet {HELD}' was changed or is gone, though it is ours alone; local programs are refused "
            "until this program is started again",
        )


class Tables:
    """The tables, in force from construction to `close`, the guard beyond that. A context manager."""

    def __init__(self, settings: RedirectSettings) -> None:
        """Put them into force. Raise `GatepassError` where that cannot be."""
        self._settings = settings
        with ExitStack() as contexts:
            # Apart, because nothing may ever happen to the first one's socket: it owns a table.
            self._holder, self._nft = contexts.enter_context(Nft()), contexts.enter_context(Nft())
            self._make()
            self._held = _listing(self._nft, HELD) or ""
            if not _OWNED.search(self._held):
                raise LostError
            self._guard = _guard_beside(self._held)
            self._contexts = contexts.pop_all()

    def keep(self) -> bool:
        """Make the guard again if it is not what it was; return whether that was so. Raise `LostError`, `NftError`."""
        if _listing(self._nft, HELD) != self._held:
            raise LostError
        if _listing(self._nft, GUARD) == self._guard:
            return False
        self._nft.run(guard_table(self._settings))
        return True

    def close(self) -> None:
        """Give up the table that is held. The guard stays: nobody but the proxy reaches the gateway meanwhile."""
        self._contexts.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Give up the table that is held."""
        self.close()

    def _make(self) -> None:
        _refuse_second(self._nft)
        try:
            self._holder.run(both_tables(self._settings))
        except NftError as error:
            _explain(error)


def remove_guard() -> None:
    """Take the guard away. Raise `GatepassError`, also where a holder would make it again."""
    with Nft() as nft:
        _refuse_second(nft)
        nft.run(no_guard())


def _listing(nft: Nft, table: str) -> str | None:
    """Return the table's rules as the kernel has them, or None if there is no such table."""
    try:
        return _HOLDERS_NAME.sub("", nft.run(f"list table inet {table}"))
    except NftError as error:
        if error.is_missing:
            return None
        raise


def _guard_beside(held: str) -> str:
    """Return how the guard is listed, which is what the held table has besides the redirect.

    Not from a listing of the guard itself: between its making and that, others may have changed it.
    """
    chain = f"\tchain {FIRST_FILTER} {{\n"
    return f"table inet {GUARD} {{\n{chain}{held.partition(chain)[2]}"


def _refuse_second(nft: Nft) -> None:
    try:
        there = _listing(nft, HELD)
    except NftError as error:
        if error.is_forbidden:
            raise GatepassError(
                ErrorCode.PERMISSION,
                "nftables refuses us: this takes root, or CAP_NET_ADMIN (AmbientCapabilities= in a unit)",
            ) from None
        _explain(error)
    if there is not None and _OWNED.search(there):
        raise GatepassError(ErrorCode.UNAVAILABLE, _BUSY)


def _explain(error: NftError) -> NoReturn:
    """Raise what it means that the tables cannot be made."""
    if error.is_forbidden:  # somebody was faster
        raise GatepassError(ErrorCode.UNAVAILABLE, _BUSY) from None
    for said, cure in _CURES.items():
        if said in error.reason.lower():
            raise GatepassError(ErrorCode.INTERNAL, f"{error.message}; {cure}") from None
    raise error
