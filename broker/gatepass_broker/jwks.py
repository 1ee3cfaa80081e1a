"""The key set as a file (RFC 7517), for verifiers that read one. Replaced in one step: nobody sees half of it."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any


def write_jwks(path: Path, keys: list[dict[str, Any]]) -> None:
    """Put a key set at `path`, readable to everybody. The directory is ours alone. Raise `OSError`.

    Not synced: after a crash of the machine its tokens are void, and a start writes the file anew.
    """
    fresh = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):  # of a broker that was killed in the middle
        fresh.unlink()
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o644)  # whatever the umask
        json.dump({"keys": keys}, file)
    fresh.replace(path)
