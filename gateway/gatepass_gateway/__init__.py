"""The gateway's side: verifies tokens, and stands in front of a gateway that runs in trusted-proxy mode.

A gateway in Python needs no proxy: it asks an `Authenticator` about each request (`demo/embedded_gateway.py`).
This face is loaded name by name, so that the command can explain a missing extra.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gatepass_gateway.authenticator import Authenticator
    from gatepass_gateway.clients import Clients, ReverseProxy
    from gatepass_gateway.followed_broker import FollowedBroker
    from gatepass_gateway.headers import bearer_secret
    from gatepass_gateway.keys import JwksFileKeys, TrustSource
    from gatepass_gateway.refused import RefusedError
    from gatepass_gateway.sock_diag import SockDiag
    from gatepass_gateway.trusted_proxy import Client, Identity, IdentityPolicy, Request

__all__ = [
    "Authenticator",
    "Client",
    "Clients",
    "FollowedBroker",
    "Identity",
    "IdentityPolicy",
    "JwksFileKeys",
    "RefusedError",
    "Request",
    "ReverseProxy",
    "SockDiag",
    "TrustSource",
    "bearer_secret",
]

_MODULES: Final = {
    "Authenticator": "authenticator",
    "Client": "trusted_proxy",
    "Clients": "clients",
    "FollowedBroker": "followed_broker",
    "Identity": "trusted_proxy",
    "IdentityPolicy": "trusted_proxy",
    "JwksFileKeys": "keys",
    "RefusedError": "refused",
    "Request": "trusted_proxy",
    "ReverseProxy": "clients",
    "SockDiag": "sock_diag",
    "TrustSource": "keys",
    "bearer_secret": "headers",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute can be anything
    """Load a public name where it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
