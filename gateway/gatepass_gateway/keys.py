"""Where trust comes from: what every source of keys has, and the one that is a file. The other follows the broker."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import anyio
import structlog

from gatepass.daemon.logs import SeldomWarning
from gatepass.errors import ConfigurationError, GatepassError
from gatepass.server_identity import check_place
from gatepass_gateway.verifier import KeySet, Trust, key_set

_log: structlog.stdlib.BoundLogger = structlog.get_logger("keys")

_MAX_JWKS_BYTES: Final = 1_000_000


class TrustSource(Protocol):
    """Somebody who knows the broker's keys, and what is locked and revoked."""

    @property
    def current(self) -> Trust:
        """What counts as last heard of; nothing before the first word."""

    @property
    def complaint(self) -> str | None:
        """What is wrong with it, in words for people; None if all is well."""

    async def run(self) -> None:
        """Keep `current` up to date, without end."""

    def check(self) -> None:
        """Raise `TryLaterError` (UNAVAILABLE) if too little is known, or too old, to let anybody in by it."""

    async def refreshed(self) -> bool:
        """Look again because a token names an unknown key. Return whether there was news."""


class JwksFileKeys:
    """Reads a JWK set (RFC 7517 section 5) from a file, again whenever the file was replaced.

    A file says nothing of revocations and the lock: with it there are none.
    """

    def __init__(self, path: Path, issuer: str | None) -> None:
        self._path = path
        self._issuer = issuer
        self._seen: tuple[int, ...] | None = None
        self._keys = KeySet()
        self._unreadable = SeldomWarning("keys_unreadable")

    @property
    def current(self) -> Trust:
        """The keys in the file; the last good ones while it is missing or broken."""
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
            if seen != self._seen:
                self._seen = seen
                self._keys = self._read()
                _log.info("keys", file=str(self._path), keys=[key.kid for key in self._keys.table.values()])
        except OSError as error:
            self._seen = None  # look again, also at the same file
            self._unreadable.warn(reason=str(error))
        except GatepassError as error:
            self._unreadable.warn(reason=error.message)
        return Trust(self._keys)

    @property
    def complaint(self) -> str | None:
        """None: what is wrong with the file is in the log."""
        return None

    async def run(self) -> None:
        """Have nothing to do: the file is looked at when a token is."""
        await anyio.sleep_forever()

    def check(self) -> None:
        """Have nothing to say: what the file does not have is never known."""

    async def refreshed(self) -> bool:
        """Return False: `current` is never behind the file."""
        return False

    def _read(self) -> KeySet:
        if not stat.S_ISREG(check_place(str(self._path)).st_mode):
            raise ConfigurationError("this is not a regular file", where=str(self._path))
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if os.fstat(descriptor).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise ConfigurationError("others than its owner can write to this file", where=str(self._path))
            text = file.read(_MAX_JWKS_BYTES)
        try:
            document = json.loads(text)
            keys: list[Mapping[str, Any]] = document["keys"]
            return key_set(self._issuer, keys)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigurationError(f"not a set of gatepass keys ({error})", where=str(self._path)) from None
