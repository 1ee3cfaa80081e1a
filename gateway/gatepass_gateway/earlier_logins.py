"""Who has logged in here and may do so again when the token's life is over: known by the token's digest, never itself.

A long-lived client has nothing but the secret that it began with. A record lets it come back with that, from the same
user and the same cgroup, on the same boot, until the time that the broker put into the token. The file keeps records
over a restart of the proxy, not of the machine.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio
import anyio.to_thread
import structlog

from gatepass.claims import Claims, claims_to_json, decode_payload
from gatepass.clock import Moment
from gatepass.daemon.safe_paths import read_own_file
from gatepass.errors import GatepassError
from gatepass.tokens import b64decode, b64encode
from gatepass_gateway.trusted_proxy import Client

_log: structlog.stdlib.BoundLogger = structlog.get_logger("logins")

MOST_PER_UID: Final = 64
MOST: Final = 4_096
_WRITE_SECONDS: Final = 0.5
"""Between two writes. What a crash loses was remembered while its token lived, and is again when that logs in anew."""
_DIGEST_BYTES: Final = 32


class EarlierLogin(NamedTuple):
    """One login."""

    cgroup: int
    """Where the client's connection was made."""
    claims: Claims

    @property
    def ends_at(self) -> int:
        """Until when it counts: seconds of CLOCK_BOOTTIME, on the boot of the token."""
        claims = self.claims
        return claims.boot.deadline - claims.lifetime + claims.reconnect

    def is_over(self, moment: Moment) -> bool:
        """Whether it counts no more."""
        return self.claims.boot.id != moment.boot_id or moment.boottime >= self.ends_at


class EarlierLogins:
    """Remembers logins, in `path` if that is not None; then `run` has to run meanwhile."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._logins: dict[str, EarlierLogin] = {}
        self._changed = anyio.Event()
        if path is not None:
            self._logins = _read(path)

    def remember(self, token: str, claims: Claims, cgroup: int, moment: Moment) -> None:
        """Remember a login, if its token allows to reconnect. The oldest of its user, or of all, makes room."""
        login = EarlierLogin(cgroup, claims)
        if not claims.reconnect or login.is_over(moment):
            return
        digest = _digest(token)
        self._logins = {key: kept for key, kept in self._logins.items() if key != digest and not kept.is_over(moment)}
        uid = claims.confirmation.uid
        own = [key for key, kept in self._logins.items() if kept.claims.confirmation.uid == uid]
        if len(own) >= MOST_PER_UID:
            del self._logins[own[0]]
        elif len(self._logins) >= MOST:
            del self._logins[next(iter(self._logins))]
        self._logins[digest] = login
        self._changed.set()

    def find(self, token: str, client: Client, moment: Moment) -> Claims | None:
        """Return the claims of the login with `token`, if `client` is where that was made and it still counts."""
        login = self._logins.get(_digest(token))
        if login is None or login.is_over(moment):
            return None
        if client.uid != login.claims.confirmation.uid or client.cgroup != login.cgroup:
            return None
        return login.claims

    async def run(self) -> None:
        """Keep the file up to date, without end."""
        if self._path is None:
            await anyio.sleep_forever()
            return
        try:
            while True:
                await self._changed.wait()
                await self._write(self._path)
                await anyio.sleep(_WRITE_SECONDS)
        finally:
            if self._changed.is_set():
                with anyio.CancelScope(shield=True):
                    await self._write(self._path)

    async def _write(self, path: Path) -> None:
        self._changed = anyio.Event()
        data = _encode(self._logins)
        try:
            await anyio.to_thread.run_sync(_replace, path, data)
        except OSError as error:
            _log.warning("logins_not_written", file=str(path), reason=error.strerror)


def _digest(token: str) -> str:
    return b64encode(hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest())


def _encode(logins: dict[str, EarlierLogin]) -> bytes:
    entries = [
        {"digest": digest, "cgroup": login.cgroup, "claims": claims_to_json(login.claims)}
        for digest, login in logins.items()
    ]
    return json.dumps({"version": 1, "logins": entries}, separators=(",", ":")).encode()


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)  # of a crash; nobody else can write to this directory
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        new.rename(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _read(path: Path) -> dict[str, EarlierLogin]:
    """Return the logins in the file; none if it is not there, or not as we wrote it: then nobody reconnects."""
    if not os.path.lexists(path):
        return {}
    try:
        return _decode(read_own_file(path))
    except GatepassError as error:
        _log.warning("logins_unreadable", file=str(path), reason=error.message)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        _log.warning("logins_unreadable", file=str(path), reason=f"malformed ({type(error).__name__})")
    return {}


def _decode(data: bytes) -> dict[str, EarlierLogin]:
    document = json.loads(data)
    if document["version"] != 1:
        raise ValueError("another version")
    logins = {}
    for entry in document["logins"][-MOST:]:
        digest, login = _entry(**entry)
        logins[digest] = login
    counts = Counter(login.claims.confirmation.uid for login in logins.values())
    if counts and max(counts.values()) > MOST_PER_UID:
        raise ValueError("too many of one user")
    return logins


def _entry(digest: str, cgroup: int, claims: dict[str, Any]) -> tuple[str, EarlierLogin]:
    if len(b64decode(digest)) != _DIGEST_BYTES or type(cgroup) is not int:
        raise ValueError("not a login")
    return digest, EarlierLogin(cgroup, decode_payload(json.dumps(claims).encode()))
