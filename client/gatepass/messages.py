"""Requests and replies as values, and their form on the wire. No I/O.

A request is `{v: 1, id: uint, op: str, …}` with the operation's parameters beside these three, a reply is
`{id, ok: true, …}` or `{id, ok: false, error: {code, message, retry_after?}}`. A parameter that is not known
is refused, never ignored: it may be a condition that the sender relies on.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeVar

from gatepass.errors import ErrorCode, GatepassError, ProtocolError, error_from_wire
from gatepass.frames import Message

VERSION: Final = 1
MAX_ID: Final = 2**32 - 1
NO_ID: Final = 0
"""The id of an error reply that concerns the connection, or a request whose id could not be read."""
MAX_TEXT: Final = 4_096
"""Longest string parameter in characters; a token of this project has about 600."""

_Parameter = TypeVar("_Parameter")


class IssueRequest(NamedTuple):
    """Ask for a token. What is None is chosen by the broker from the caller's grant."""

    audience: str | None = None
    scope: str | None = None
    """Space-separated (RFC 8693 section 2.1). None asks for everything granted, "" for a token without scopes."""
    ttl: int | None = None
    """Wanted life in seconds."""


class WhoamiRequest(NamedTuple):
    """Ask whom the broker sees and what it would grant."""


class StatusRequest(NamedTuple):
    """Ask how the broker is."""


class VerifyRequest(NamedTuple):
    """Ask the broker to check one of its own tokens, as if the caller showed it."""

    token: str
    audience: str | None = None


class FollowRequest(NamedTuple):
    """Follow the broker's verification keys: a reply now and one more whenever they change, without end."""


Operation = IssueRequest | WhoamiRequest | StatusRequest | VerifyRequest | FollowRequest

OPERATIONS: Final[dict[str, type[Operation]]] = {
    "issue": IssueRequest,
    "whoami": WhoamiRequest,
    "status": StatusRequest,
    "verify": VerifyRequest,
    "follow": FollowRequest,
}

_NAMES: Final = {kind: name for name, kind in OPERATIONS.items()}


class Request(NamedTuple):
    """One request: `id` is chosen by the client and comes back in the reply."""

    id: int
    operation: Operation


class InvalidRequestError(GatepassError):
    """A request that was read but cannot be served; unlike after `ProtocolError` the connection goes on."""

    def __init__(self, code: ErrorCode, message: str, request_id: int) -> None:
        super().__init__(code, message)
        self.request_id = request_id


def operation_name(operation: Operation) -> str:
    """Return the wire name of `operation`."""
    return _NAMES[type(operation)]


def request_message(request: Request) -> Message:
    """Return the map for `request`; parameters that are None are left out."""
    message: Message = {"v": VERSION, "id": request.id, "op": operation_name(request.operation)}
    message.update((key, value) for key, value in request.operation._asdict().items() if value is not None)
    return message


def parse_request(message: Message) -> Request:
    """Return the request that `message` holds.

    Raise `ProtocolError` where it cannot even be answered (no usable id, another version), and
    `InvalidRequestError` where it can.
    """
    fields = dict(message)
    request_id = fields.pop("id", None)
    if not _is_uint(request_id, MAX_ID) or request_id == NO_ID:
        raise ProtocolError("the request has no 'id' between 1 and 4294967295")
    if fields.pop("v", None) != VERSION or isinstance(message["v"], bool):
        raise ProtocolError(
            f"the request is not of protocol version {VERSION}: update gatepass on the older side",
            ErrorCode.UNSUPPORTED_VERSION,
        )
    name = fields.pop("op", None)
    kind = OPERATIONS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise InvalidRequestError(
            ErrorCode.UNKNOWN_OPERATION,
            f"there is no such operation; known are {', '.join(OPERATIONS)}",
            request_id,
        )
    return Request(request_id, _operation(kind, fields, request_id))


def _operation(kind: type[Operation], fields: Message, request_id: int) -> Operation:
    for key, value in fields.items():
        if key not in kind._fields:
            raise _invalid(f"'{key[:40]}' is not a parameter of '{_NAMES[kind]}'", request_id)
        if key == "ttl":
            if not _is_uint(value, MAX_ID) or value == 0:
                raise _invalid("'ttl' must be a positive whole number of seconds", request_id)
        elif not _is_text(value):
            raise _invalid(f"'{key}' must be a string of at most {MAX_TEXT} printable characters", request_id)
    try:
        return kind(**fields)
    except TypeError:
        missing = [name for name in kind._fields if name not in kind._field_defaults and name not in fields]
        raise _invalid(f"'{missing[0]}' is missing", request_id) from None


def ok_message(request_id: int, result: Message) -> Message:
    """Return the map of a successful reply."""
    return {"id": request_id, "ok": True, **result}


def error_message(request_id: int, error: GatepassError) -> Message:
    """Return the map of a reply that says no."""
    body: Message = {"code": error.code.value, "message": error.message}
    if error.retry_after is not None:
        body["retry_after"] = error.retry_after
    return {"id": request_id, "ok": False, "error": body}


def parse_reply(message: Message, request_id: int) -> Message:
    """Return the result in the reply to the request with `request_id`, without `id` and `ok`.

    Raise the error that an error reply stands for, and `ProtocolError` for anything that is not a reply to it.
    """
    if message.get("id") != request_id and (message.get("id") != NO_ID or message.get("ok") is not False):
        raise ProtocolError("the broker answered another request than the one that was sent")
    if message.get("ok") is True:
        return {key: value for key, value in message.items() if key not in ("id", "ok")}
    error = message.get("error")
    if message.get("ok") is not False or not isinstance(error, dict):
        raise ProtocolError("the broker's reply says neither yes nor no")
    code = field(error, "code", str)
    retry_after = error.get("retry_after")
    raise error_from_wire(code, field(error, "message", str), retry_after if _is_uint(retry_after, MAX_ID) else None)


def field(message: Message, name: str, kind: type[_Parameter]) -> _Parameter:
    """Return `message[name]`, which must be a `kind`. Raise `ProtocolError`. A boolean is no integer here."""
    value = message.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ProtocolError(f"the reply has no '{name}' that is a {kind.__name__}")
    return value


class IssuedToken(NamedTuple):
    """A token as the broker's reply to `issue` brings it."""

    token: str
    expires_in: int
    """Life in seconds from the moment of the reply."""
    subject: str
    audience: str
    scope: str

    def __repr__(self) -> str:
        """Everything but the token: a repr ends up in logs and tracebacks."""
        return f"IssuedToken(subject={self.subject!r}, audience={self.audience!r}, expires_in={self.expires_in})"


def issued_token(result: Message) -> IssuedToken:
    """Return the token in the result of an `issue` request. Raise `ProtocolError`."""
    return IssuedToken(
        token=field(result, "token", str),
        expires_in=field(result, "expires_in", int),
        subject=field(result, "subject", str),
        audience=field(result, "audience", str),
        scope=field(result, "scope", str),
    )


def _is_uint(value: Any, maximum: int) -> bool:  # noqa: ANN401 - this is what finds out the type
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= maximum


def _is_text(value: Any) -> bool:  # noqa: ANN401 - this is what finds out the type
    return isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable()


def _invalid(message: str, request_id: int) -> InvalidRequestError:
    return InvalidRequestError(ErrorCode.INVALID_REQUEST, message, request_id)
