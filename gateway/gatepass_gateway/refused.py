"""The one exception by which this side says no to a client."""

from __future__ import annotations

from gatepass.errors import GatepassError


class RefusedError(GatepassError):
    """The request ends here. `message` is for the person who sent it; `retry_after` says that it may work later."""
