"""gatepass: short-lived identity for local callers of a gateway behind an identity-aware proxy.

    with gatepass.Client() as client:
        token = client.issue(audience="openclaw").token

This face is loaded name by name, so that `import gatepass` costs nothing by itself: the CLI starts on every login.
The anyio twin is `gatepass.aio` and is never imported from here; it needs the extra `gatepass[async]`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gatepass.client import Client
    from gatepass.errors import (
        ConfigurationError,
        DeniedError,
        ErrorCode,
        GatepassError,
        ProtocolError,
        TokenError,
        TryLaterError,
        UnreachableError,
    )
    from gatepass.explanation import Explanation
    from gatepass.messages import IssuedToken
    from gatepass.oversight import Enforced, LeftBehindList, SessionList
    from gatepass.replies import Status, VerifiedToken, Whoami
    from gatepass.source import TokenSource

__version__ = "0.1.0"
"""Stands here because reading what pip has recorded takes longer than all else that a client loads."""

__all__ = [
    "Client",
    "ConfigurationError",
    "DeniedError",
    "Enforced",
    "ErrorCode",
    "Explanation",
    "GatepassError",
    "IssuedToken",
    "LeftBehindList",
    "ProtocolError",
    "SessionList",
    "Status",
    "TokenError",
    "TokenSource",
    "TryLaterError",
    "UnreachableError",
    "VerifiedToken",
    "Whoami",
    "__version__",
]

_ELSEWHERE: Final = {
    "Client": "gatepass.client",
    "Enforced": "gatepass.oversight",
    "Explanation": "gatepass.explanation",
    "IssuedToken": "gatepass.messages",
    "LeftBehindList": "gatepass.oversight",
    "SessionList": "gatepass.oversight",
    "Status": "gatepass.replies",
    "TokenSource": "gatepass.source",
    "VerifiedToken": "gatepass.replies",
    "Whoami": "gatepass.replies",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute can be anything
    """Load a public name where it is first used (PEP 562). The errors are everything that is left."""
    if name not in __all__:
        raise AttributeError(f"module 'gatepass' has no attribute '{name}'")
    globals()[name] = value = getattr(import_module(_ELSEWHERE.get(name, "gatepass.errors")), name)
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return __all__
