"""Recognise what gatepass made, or what pretends to be made by it, in any text that a client sent. No I/O."""

from __future__ import annotations

import base64
import re
from typing import Final

from gatepass.openclaw import NO_TOKEN_PREFIX

_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_ENCODED_OBJECT: Final = re.compile(rb"e[yw][A-Za-z0-9_=+/-]{8,}")


def is_gatepass_shaped(secret: str) -> bool:
    """Whether `secret` holds something that was, or pretends to be, made by gatepass.

    Deliberately loose: a gateway must not hand such a secret on when it fails to verify, whatever was altered in
    it and however it was wrapped or percent-encoded. `secret` may be a whole header or query.
    """
    raw = secret.encode("utf-8", "surrogatepass")
    for candidate in (raw, _ESCAPE.sub(_unescape, raw)):
        if NO_TOKEN_PREFIX.encode("ascii") in candidate.lower():
            return True
        if any(_names_us(found) for found in _ENCODED_OBJECT.findall(candidate)):
            return True
    return False


def _unescape(escape: re.Match[bytes]) -> bytes:
    return bytes.fromhex(escape[1].decode("ascii"))


def _names_us(encoded: bytes) -> bool:
    standard = encoded.translate(bytes.maketrans(b"-_", b"+/")).replace(b"=", b"")
    whole = standard[: len(standard) // 4 * 4]
    return b"gatepass" in base64.b64decode(whole).lower()  # in the header as type, in the claims as issuer
