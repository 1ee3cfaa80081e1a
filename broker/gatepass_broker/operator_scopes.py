"""The operator scopes of OpenClaw, by name. Values only."""

from __future__ import annotations

from typing import Final

OPERATOR_SCOPES: Final = (
    "operator.admin",
    "operator.approvals",
    "operator.pairing",
    "operator.questions",
    "operator.read",
    "operator.sessions.read",
    "operator.sessions.write",
    "operator.talk",
    "operator.talk.secrets",
    "operator.write",
)
"""Every operator scope of OpenClaw (its docs, gateway/operator-scopes.md). All by name, because OpenClaw intersects
names: it does not take `operator.admin` to include `operator.read` there."""
