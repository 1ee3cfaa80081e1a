"""The configuration of a person's own broker: `gatepass-broker --loopback-user NAME`, without a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from gatepass.daemon.safe_paths import make_directory
from gatepass.daemon.toml_tables import check_tables
from gatepass.errors import ConfigurationError
from gatepass.tokens import b64encode
from gatepass_broker.config import resolve
from gatepass_broker.operator_scopes import OPERATOR_SCOPES
from gatepass_broker.schema import File
from gatepass_broker.settings import Settings

DEFAULT_AUDIENCES: Final = ("openclaw",)
RECONNECT_SECONDS: Final = 28_800
"""Eight hours: a working day with `openclaw tui`."""


def personal(  # noqa: PLR0913 - one for each option of the command line
    loopback_user: str,
    uid: int,
    environ: Mapping[str, str],
    *,
    socket: Path | None = None,
    state_dir: Path | None = None,
    scopes: Sequence[str] = OPERATOR_SCOPES,
    audiences: Sequence[str] = DEFAULT_AUDIENCES,
    ttl: int | None = None,
) -> Settings:
    """Return the settings of a broker that serves `uid` alone, with every operation on its one socket.

    Makes the directories that it needs, 0700. `ttl` is both default and longest life in seconds. Raise
    `ConfigurationError`.
    """
    path = (socket or make_directory(_runtime_dir(uid, environ)) / "broker.sock").absolute()
    tables = {
        "broker": {
            "loopback_user": loopback_user,
            "state_dir": str(make_directory(state_dir or _state_dir(environ))),
            "jwks_file": str(path.parent / "jwks.json"),
            **({} if ttl is None else {"default_ttl": ttl, "max_ttl": ttl}),
        },
        "socket": [{"path": str(path), "mode": "0600", "allow": ["request", "follow", "admin"]}],
        "rule": [
            {
                "name": "personal",
                "uid": uid,
                "scopes": [*scopes],
                "audiences": [*audiences],
                "reconnect": RECONNECT_SECONDS,
            }
        ],
    }
    digest = b64encode(hashlib.sha256(msgspec.json.encode(tables, order="deterministic")).digest())
    return resolve(check_tables(tables, File), source=None, digest=digest)


def _runtime_dir(uid: int, environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    if not Path(base).is_dir():
        raise ConfigurationError(
            "there is no runtime directory for this user (XDG_RUNTIME_DIR); log in with a session that has one, "
            "or say where the socket goes with --socket PATH",
            where=base,
        )
    return Path(base) / "gatepass"


def _state_dir(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "gatepass"
