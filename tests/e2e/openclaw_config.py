"""The configuration of an OpenClaw behind the proxy."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Config = dict[str, Any]

# The source address of the connections that carry an identity, and OpenClaw's only trusted proxy.
IDENTITY_SOURCE = "127.7.7.7"
USER = "derek@example.com"

# Every operator scope by name (docs/gateway/operator-scopes.md of the package). OpenClaw caps a session by intersecting
# names and does not know that admin implies read, so the identity is granted whatever a narrower token may ask for.
OPERATOR_SCOPES = (
    "operator.admin",
    "operator.read",
    "operator.write",
    "operator.sessions.read",
    "operator.sessions.write",
    "operator.approvals",
    "operator.questions",
    "operator.pairing",
    "operator.talk",
    "operator.talk.secrets",
)


def trusted_proxy_config(
    *,
    port: int,
    secret_command: Path,
    user_header: str | None = None,
    user: str = USER,
    scopes: Sequence[str] = OPERATOR_SCOPES,
    secret_env: Sequence[str] = (),
) -> Config:
    """Build the configuration of an OpenClaw behind the proxy on `port`.

    `gateway.port` is the proxy's: it is where the CLI dials. The gateway itself listens where `--port` says.
    `secret_command` answers OpenClaw's exec-secret protocol. It must be a regular file, owned by OpenClaw's user and
    writable for nobody else (docs/gateway/secrets/).
    """
    return {
        "gateway": {
            "mode": "local",
            "bind": "loopback",
            "port": port,
            "controlUi": {"enabled": False},
            "trustedProxies": [IDENTITY_SOURCE],
            "auth": {
                "mode": "trusted-proxy",
                "password": {"source": "exec", "provider": "gatepass", "id": "gateway/password"},
                "trustedProxy": {
                    "userHeader": user_header or f"x-user-{secrets.token_hex(16)}",
                    "allowUsers": [user],
                    "allowLoopback": True,
                },
                "identityScopes": {user: list(scopes)},
            },
        },
        "secrets": {
            "providers": {
                "gatepass": {
                    "source": "exec",
                    "command": str(secret_command),
                    "args": [],
                    "passEnv": ["HOME", *secret_env],
                    "trustedDirs": [str(secret_command.parent)],
                    "jsonOnly": True,
                },
            },
        },
        "discovery": {"mdns": {"mode": "off"}},
    }
