"""The configuration as the running broker uses it: resolved, and never changed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gatepass_broker.judge import Rules


class ConnectionLimits(NamedTuple):
    """What one connection, one user and all together may take up."""

    connections: int
    connections_per_uid: int
    frame_seconds: float
    """For a frame that has begun to be complete, and for a peer to read what was answered."""
    idle_seconds: float
    """For a connection without a request."""
    pipelined: int
    """Requests of one connection that are answered before others have their turn."""


class JournalLimits(NamedTuple):
    """How much of the journal is kept."""

    segment_bytes: int
    keep_segments: int


class SocketSettings(NamedTuple):
    """One listening socket."""

    path: Path
    mode: int
    owner: int | None
    """A uid, or None for that of the process."""
    group: int | None
    """A gid, or None for that of the process."""
    allow: frozenset[str]
    """Operation groups."""


class Lifetimes(NamedTuple):
    """How long keys sign and tokens live at most, in seconds."""

    key: int
    token: int


class Settings(NamedTuple):
    """Everything that a configuration says."""

    rules: Rules
    lifetimes: Lifetimes
    limits: ConnectionLimits
    journal: JournalLimits
    state_dir: Path
    jwks_file: Path | None
    sockets: tuple[SocketSettings, ...]
    digest: str
    """SHA-256 of the configuration, all its files together, base64url."""
    rule_files: tuple[Path, ...] = ()
    """Files of `conf.d` that rules come from, in their order."""
