"""OpenClaw's exec-secret protocol (its docs, gateway/secrets), which `gatepass openclaw secret` speaks. No I/O.

OpenClaw starts the command, writes `{"protocolVersion":1,"provider":…,"ids":[…]}` to its stdin and reads
`{"protocolVersion":1,"values":{id: secret}}` from its stdout.
"""

from __future__ import annotations

from typing import Final

NO_TOKEN_PREFIX: Final = "gatepass-none."
"""Begins what `gatepass openclaw secret` answers where there is no token to give: it can never log in."""
