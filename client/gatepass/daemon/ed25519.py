"""Checking Ed25519 signatures: what both the broker and a gateway do with a public key."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gatepass.tokens import VerifySignature


def signature_check(public_key: bytes) -> VerifySignature:
    """Return a function that tells whether its first argument is the key's signature of the second."""
    key = Ed25519PublicKey.from_public_bytes(public_key)

    def verify(signature: bytes, data: bytes) -> bool:
        try:
            key.verify(signature, data)
        except InvalidSignature:
            return False
        return True

    return verify
