"""Which OpenClaw can work."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

OLDEST: Final = "2026.8.1"
"""The oldest release that works: it brought `gateway.auth.identityScopes`, which 2026.7.35 refuses as unknown."""

WHOLE: Final = "2026.9.6"
"""The oldest release in which `openclaw gateway call` logs in too. Until then the launcher of a command renames itself
as well, so that nothing tells the helper whether a command asks or the gateway: it gives no token."""

_VERSION: Final = re.compile(r"\b(\d{4})\.(\d+)\.(\d+)(?:-(\d+)|-([a-z]+\S*))?")


class Version(NamedTuple):
    """A version of OpenClaw, in the order of releases."""

    year: int
    month: int
    patch: int
    rank: int
    """-1 for what was made before the release (`-beta.1`), else the number of the repetition (`-2`)."""
    text: str


def parse_version(text: str) -> Version | None:
    """Return the first version in `text`, such as `OpenClaw 2026.9.6 (eb377ac)`."""
    found = _VERSION.search(text)
    if found is None:
        return None
    year, month, patch, repetition, before = found.groups()
    return Version(int(year), int(month), int(patch), -1 if before else int(repetition or 0), found[0])


def caveat(version: Version) -> str | None:
    """Return the sentence that says what does not work with `version`, or None."""
    whole = parse_version(WHOLE)
    if whole is None or version[:4] >= whole[:4]:
        return None
    return f"with OpenClaw {version.text} 'openclaw gateway call' does not log in; all else does; {WHOLE} mends that"


def why_it_cannot_work(version: Version) -> str | None:
    """Return the sentence that refuses `version`, or None."""
    oldest = parse_version(OLDEST)
    if oldest is None or version[:4] >= oldest[:4]:
        return None
    lacks = (
        "a login through a trusted proxy has no scope there (no gateway.auth.identityScopes)"
        if version[:2] >= (2026, 4)
        else "it refuses every trusted proxy on this machine (no trustedProxy.allowLoopback)"
    )
    return f"OpenClaw {version.text} cannot work with gatepass: {lacks}; upgrade it to {OLDEST} or later"
