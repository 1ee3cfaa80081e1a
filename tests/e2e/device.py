"""A device as OpenClaw knows them, by its docs (gateway/protocol/auth): what a setup code pairs, and one far away."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from e2e.callers import SECONDS, call, connect_params, open_websocket
from e2e.live_client import LiveClient
from e2e.openclaw_instance import Account
from e2e.stack import Stack

IOS_NODE: dict[str, Any] = {
    "role": "node",
    "scopes": [],
    "clientName": "openclaw-ios",
    "mode": "node",
    "platform": "iOS 18.0",
    "deviceFamily": "iPhone",
}
"""OpenClaw's own app. With a setup code it is given a token of an operator, besides that of a node."""

IOS_OPERATOR: dict[str, Any] = {**IOS_NODE, "role": "operator", "mode": "ui", "scopes": ["operator.read"]}


class PairedDevice(NamedTuple):
    """A device that is paired, and its token."""

    identity: dict[str, str]
    token: str

    def log_in(self, stack: Stack, account: Account, port: int | None = None) -> LiveClient:
        """Have a program of `account` log in with it as an operator."""
        return LiveClient(
            stack.openclaw.install,
            account,
            stack.port if port is None else port,
            device=self.identity,
            deviceToken=self.token,
            **IOS_OPERATOR,
        )


def setup_code(stack: Stack, session: LiveClient) -> str:
    """Have an administrator's session make a setup code, and return the bootstrap token in it."""
    url = f"ws://127.0.0.1:{stack.port}"
    answer = session.call("device.pair.setupCode", includeQr=False, publicUrl=url)
    assert answer["ok"], answer
    code: str = answer["payload"]["setupCode"]
    token: str = json.loads(base64.urlsafe_b64decode(code + "=" * (-len(code) % 4)))["bootstrapToken"]
    return token


def pair(stack: Stack, account: Account, bootstrap_token: str) -> PairedDevice:
    """Pair a new device as a program of `account`, and return it with its operator's token."""
    with LiveClient(
        stack.openclaw.install, account, stack.port, device="new", bootstrapToken=bootstrap_token, **IOS_NODE
    ) as node:
        identity = node.wait_for("device")["device"]
        hello = node.wait_for("hello", "close")
        assert hello["event"] == "hello", hello
    (operator,) = hello["auth"]["deviceTokens"]
    assert operator["role"] == "operator"
    return PairedDevice(identity, operator["deviceToken"])


class RemoteDevice:
    """A device with a key of its own that logs in with an identity header and asks to be paired."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self._public = self._key.public_key().public_bytes_raw()
        self.id = hashlib.sha256(self._public).hexdigest()

    def log_in(self, port: int, headers: Mapping[str, str]) -> dict[str, Any]:
        """Log in and return the answer."""
        with open_websocket(port, headers=headers) as websocket:
            challenge = json.loads(websocket.recv(SECONDS))["payload"]
            scopes = ["operator.read"]
            params = connect_params(None, scopes=scopes, device=self._block(challenge, scopes))
            return call(websocket, "connect", params)

    def _block(self, challenge: Mapping[str, Any], scopes: list[str]) -> dict[str, Any]:
        at, nonce = challenge["ts"], challenge["nonce"]
        signed = "|".join(["v3", self.id, "cli", "cli", "operator", ",".join(scopes), str(at), "", nonce, "linux", ""])
        return {
            "id": self.id,
            "publicKey": _b64(self._public),
            "signature": _b64(self._key.sign(signed.encode())),
            "signedAt": at,
            "nonce": nonce,
        }


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
