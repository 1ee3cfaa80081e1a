"""Every way in which gatepass says no: one enum of codes, one tree of exceptions.

The codes travel on the broker's socket, in journals and in a gateway's answers; they are stable. *Denied*
(asking again changes nothing) and *try later* (asking again may) are different exceptions on purpose.
"""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """What went wrong, as a stable word."""

    # The connection to the broker: what was said cannot be understood.
    MALFORMED = "malformed"
    UNSUPPORTED_VERSION = "unsupported_version"
    UNKNOWN_OPERATION = "unknown_operation"
    INVALID_REQUEST = "invalid_request"

    # The broker's decision.
    DENIED = "denied"
    OPERATION_NOT_ALLOWED = "operation_not_allowed"
    LOCKED = "locked"

    # The broker cannot answer now.
    RATE_LIMITED = "rate_limited"
    CONNECT_AGAIN = "connect_again"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"

    # Seen by a client: there is no broker to ask, or not the right one.
    UNREACHABLE = "unreachable"
    PERMISSION = "permission"
    IMPOSTOR = "impostor"
    TIMEOUT = "timeout"
    MISCONFIGURED = "misconfigured"

    # A token, in the order in which it is checked.
    TOKEN_MALFORMED = "token_malformed"
    TOKEN_UNKNOWN_KEY = "token_unknown_key"
    TOKEN_BAD_SIGNATURE = "token_bad_signature"
    TOKEN_WRONG_ISSUER = "token_wrong_issuer"
    TOKEN_WRONG_AUDIENCE = "token_wrong_audience"
    TOKEN_WRONG_BOOT = "token_wrong_boot"
    TOKEN_EXPIRED = "token_expired"
    TOKEN_NOT_YET_VALID = "token_not_yet_valid"
    TOKEN_WRONG_UID = "token_wrong_uid"
    TOKEN_WRONG_UNIT = "token_wrong_unit"
    TOKEN_PROCESS_ENDED = "token_process_ended"
    TOKEN_REVOKED = "token_revoked"

    # A gateway: what a request brings besides, or instead of, a token.
    NO_TOKEN = "no_token"
    SECRET_MISPLACED = "secret_misplaced"
    IDENTITY_FORGED = "identity_forged"
    IDENTITY_UNKNOWN = "identity_unknown"
    FORWARDED = "forwarded"
    BROWSER_ORIGIN = "browser_origin"
    DEVICE_LOGIN = "device_login"
    BAD_REQUEST = "bad_request"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    UPSTREAM_UNAVAILABLE = "upstream_unavailable"
    UPSTREAM_IMPOSTOR = "upstream_impostor"


class GatepassError(Exception):
    """Base of all errors that gatepass raises on purpose.

    `code` is the stable word, `message` a sentence with cause and cure, `retry_after` whole seconds after
    which asking again makes sense, or None.
    """

    def __init__(self, code: ErrorCode, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after


class ProtocolError(GatepassError):
    """What came over the socket breaks the protocol; the connection cannot be used further."""

    def __init__(self, message: str, code: ErrorCode = ErrorCode.MALFORMED) -> None:
        super().__init__(code, message)


class DeniedError(GatepassError):
    """The broker refused, or could not serve the request. The same from the same caller will be refused again."""


class TryLaterError(GatepassError):
    """The broker cannot answer now; the same request may succeed later."""


class UnreachableError(GatepassError):
    """No broker could be asked: no socket, no permission, nobody answering, or not the right one."""


class ConfigurationError(GatepassError):
    """A configuration cannot be used. `where` is the place: a file, a key path, or both."""

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(ErrorCode.MISCONFIGURED, f"{where}: {message}" if where else message)
        self.where = where


class TokenError(GatepassError):
    """A token that must not be accepted. The message never contains the token or its claims' secrets."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(code, message)


_CLASS_OF_CODE: dict[ErrorCode, type[GatepassError]] = {
    ErrorCode.RATE_LIMITED: TryLaterError,
    ErrorCode.CONNECT_AGAIN: TryLaterError,
    ErrorCode.UNAVAILABLE: TryLaterError,
    ErrorCode.INTERNAL: TryLaterError,
    ErrorCode.UNREACHABLE: UnreachableError,
    ErrorCode.PERMISSION: UnreachableError,
    ErrorCode.IMPOSTOR: UnreachableError,
    ErrorCode.TIMEOUT: UnreachableError,
}


def error_from_wire(code: str, message: str, retry_after: int | None = None) -> GatepassError:
    """Return the exception that a broker's error reply stands for.

    A code of a newer broker that this release does not know becomes a plain `GatepassError` that keeps the
    word in its message: neither 'denied' nor 'try later' may be guessed.
    """
    try:
        known = ErrorCode(code)
    except ValueError:
        return GatepassError(ErrorCode.INTERNAL, f"{message} ({code})", retry_after=retry_after)
    if known.startswith("token_"):
        return TokenError(known, message)
    if known in (ErrorCode.MALFORMED, ErrorCode.UNSUPPORTED_VERSION):
        return ProtocolError(message, known)
    return _CLASS_OF_CODE.get(known, DeniedError)(known, message, retry_after=retry_after)
