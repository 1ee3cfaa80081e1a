"""What install has made on this machine, noted before it is made: for upgrades, and for undoing nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
from msgspec import Struct, field

from gatepass.errors import ConfigurationError
from gatepass_broker.install.files import write
from gatepass_broker.install.request import Request


class Manifest(Struct, kw_only=True, forbid_unknown_fields=True):
    """The state of an installation."""

    request: Request = Request()
    files: dict[str, str] = field(default_factory=dict)
    """Paths, each with the SHA-256 digest of what was written there last."""
    links: dict[str, str] = field(default_factory=dict)
    """Symbolic links, each with its target."""
    directories: list[str] = field(default_factory=list)
    """Made for the above, in the order in which they were made."""
    users: list[str] = field(default_factory=list)
    """Accounts that did not exist before."""
    groups: list[str] = field(default_factory=list)
    """Groups that did not exist before."""
    members: list[str] = field(default_factory=list)
    """Accounts that were no members of the callers' group before."""
    openclaw_set_up: bool = False
    """Whether OpenClaw's own configuration was, or may have been, changed."""
    openclaw_uid: int | None = None
    """Whose OpenClaw that is: an account can get another name."""
    running: dict[str, str] = field(default_factory=dict)
    """Units, each with the fingerprint of what it runs."""

    def is_own(self, path: Path, content: bytes) -> bool:
        """Whether `content` is what install has written to `path`."""
        return self.files.get(str(path)) == digest(content)


def digest(content: bytes) -> str:
    """Return the digest of a file's content."""
    return hashlib.sha256(content).hexdigest()


def load(path: Path) -> Manifest | None:
    """Return the manifest at `path`; None if nothing is installed. Raise `ConfigurationError`, `OSError`."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"this does not say what an earlier install did: {error}. A newer gatepass may have written it: run its "
            "own gatepass-broker",
            where=str(path),
        ) from None


def save(manifest: Manifest, path: Path) -> None:
    """Write the manifest. Raise `OSError`."""
    write(path, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n", 0o600)
