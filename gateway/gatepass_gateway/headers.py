"""Which header fields may pass from a client to the gateway behind. Pure.

Two lists, for the two ways upstream. Requests with an identity are *built* from a list of allowed fields, so that
a field whose meaning the gateway learns tomorrow, or by a changed configuration, carries nothing today. Requests
without one pass as they are, less what ends at each hop: the gateway believes nothing that comes that way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

Headers = tuple[tuple[bytes, bytes], ...]
"""Field names in lower case, and values, in the order in which they came."""

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"expect",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110 section 7.6.1, and `Expect`, which whoever reads the body answers."""

FRAMING: Final = frozenset({b"content-length"})
"""How long the body is: kept as the parser understood it, so that both sides count the same bytes."""

_FORWARDING: Final = frozenset(
    {b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip", b"true-client-ip", b"fastly-client-ip"}
)
_FORWARDING_PREFIXES: Final = (b"x-forwarded", b"cf-", b"tailscale-")
"""OpenClaw itself takes `forwarded`, `x-real-ip`, `x-forwarded-*` and `tailscale-*` for a sign of a proxy."""

_ALLOWED_WITH_IDENTITY: Final = frozenset(
    {
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"content-encoding",
        b"content-type",
        b"idempotency-key",
        b"if-none-match",
        b"if-range",
        b"last-event-id",
        b"range",
        b"user-agent",
        b"x-openclaw-account-id",
        b"x-openclaw-agent",
        b"x-openclaw-agent-id",
        b"x-openclaw-message-channel",
        b"x-openclaw-message-to",
        b"x-openclaw-model",
        b"x-openclaw-session-key",
        b"x-openclaw-thread-id",
    }
)

_ALLOWED_FROM_REVERSE_PROXY: Final = frozenset(
    {
        b"authorization",
        b"cache-control",
        b"cookie",
        b"if-match",
        b"if-modified-since",
        b"if-unmodified-since",
        b"origin",
        b"pragma",
        b"referer",
        b"sec-fetch-dest",
        b"sec-fetch-mode",
        b"sec-fetch-site",
    }
)


def canonical_name(name: bytes) -> bytes:
    """Return a field name as a lenient server may read it: lower case, `_` for `-`, no blanks or dots around."""
    return name.lower().replace(b"_", b"-").strip(b" \t\0.")


def is_forwarding(canonical: bytes) -> bool:
    """Whether the field claims that somebody else sent the request, and from where."""
    return canonical in _FORWARDING or canonical.startswith(_FORWARDING_PREFIXES)


def values_of(headers: Headers, name: bytes) -> list[bytes]:
    """Return the values of all fields called `name`, in any spelling."""
    return [value for key, value in headers if canonical_name(key) == name]


def bearer_secret(headers: Headers) -> str | None:
    """Return the secret in `Authorization: Bearer …` (RFC 6750 section 2.1), if there is one."""
    for value in values_of(headers, b"authorization"):
        scheme, _, secret = value.partition(b" ")
        if scheme.lower() == b"bearer":
            return secret.strip().decode("latin-1")
    return None


def connection_options(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Return the field names in `Connection` (RFC 9110 section 7.6.1), as a lenient server may read them."""
    values = b",".join(value for key, value in headers if canonical_name(key) == b"connection")
    return frozenset(canonical_name(option) for option in values.split(b","))


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the fields that pass a hop: all but the hop-by-hop ones and those that `Connection` names.

    Nobody can name what the message itself needs: without its length a body would be lost.
    """
    fields = tuple(headers)
    named = {
        token.strip().lower() for key, value in fields if key.lower() == b"connection" for token in value.split(b",")
    }
    ends_here = HOP_BY_HOP | (named - FRAMING - {b"host"})
    return tuple((key, value) for key, value in fields if key.lower() not in ends_here)


def allowed_with_identity(headers: Headers, *, from_reverse_proxy: bool, extra: frozenset[bytes]) -> Headers:
    """Return the fields that may stand beside an identity: framing, the allowed ones, and `extra` by configuration.

    The reverse proxy speaks for browsers and says where they are: its forwarding fields pass too.
    """
    allowed = _ALLOWED_WITH_IDENTITY | FRAMING | extra
    if not from_reverse_proxy:
        return tuple(field for field in headers if field[0] in allowed)
    allowed |= _ALLOWED_FROM_REVERSE_PROXY | {b"host"}
    return tuple(field for field in headers if field[0] in allowed or is_forwarding(field[0]))
