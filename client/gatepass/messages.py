"""Requests and replies as values, and their form on the wire. No I/O.

A request is `{v: 1, id: uint, op: str, …}` with the operation's parameters beside these three, a reply is
`{id, ok: true, …}` or `{id, ok: false, error: {code, message, retry_after?}}`. A parameter that is not known
is refused, never ignored: it may be a condition that the sender relies on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
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


MAX_ITEMS: Final = 4_096
"""Longest list parameter, which is what a frame can hold."""


class Binding(StrEnum):
    """What a token is bound to, besides its user. Each includes those before it, where the kernel tells them."""

    UID = "uid"
    UNIT = "unit"
    PROCESS = "process"


class IssueRequest(NamedTuple):
    """Ask for a token. What is None is chosen by the broker from the caller's grant."""

    audience: str | None = None
    scope: str | None = None
    """Space-separated (RFC 8693 section 2.1). None asks for everything granted, "" for a token without scopes."""
    ttl: int | None = None
    """Wanted life in seconds."""
    binding: str | None = None
    """A `Binding`, to have the token bound more closely than the grant demands."""


class ExplainRequest(NamedTuple):
    """Ask how a request for a token would be decided, and why; without `pid` and `uid`, one of the asking process.

    For others (`admin`): the process `pid`; or a user with `uid`, `gid` and supplementary `groups`, wherever it runs.
    """

    audience: str | None = None
    scope: str | None = None
    ttl: int | None = None
    binding: str | None = None
    pid: int | None = None
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None


class WhoamiRequest(NamedTuple):
    """Ask whom the broker sees and what it would grant."""


class StatusRequest(NamedTuple):
    """Ask how the broker is."""


class VerifyRequest(NamedTuple):
    """Ask the broker to check one of its own tokens, as if the caller showed it."""

    token: str
    audience: str | None = None


class FollowRequest(NamedTuple):
    """Follow the broker: its keys, and what is locked and revoked. A reply now, and one more at each change.

    A connection that follows takes `ReportRequest` and nothing else.
    """

    name: str | None = None
    """What the follower is called in lists for people."""


class ReportRequest(NamedTuple):
    """What a follower tells the broker, on the connection on which it follows."""

    seq: int
    """The last change that it has carried out: sessions which that cuts off have ended."""
    opened: tuple[Message, ...] = ()
    """Sessions that began (`gatepass.sessions.Session`)."""
    closed: tuple[str, ...] = ()
    """Ids of sessions that ended."""
    left_behind: tuple[Message, ...] = ()
    """What sessions left behind (`gatepass.sessions.LeftBehind`)."""


class SessionsRequest(NamedTuple):
    """Ask for the sessions that are open at the broker's followers."""


class LeftBehindRequest(NamedTuple):
    """Ask for what sessions have left behind."""


class RevokeRequest(NamedTuple):
    """Cut off what was issued so far; answered when every follower has acted, or has taken too long."""

    by: str
    """A `gatepass.revocations.Cut`."""
    value: str = ""


class LockRequest(NamedTuple):
    """Issue nothing and let nobody in, from now on and over restarts; answered as a revocation is."""


class UnlockRequest(NamedTuple):
    """End the lock."""


Operation = (
    IssueRequest
    | ExplainRequest
    | WhoamiRequest
    | StatusRequest
    | VerifyRequest
    | FollowRequest
    | ReportRequest
    | SessionsRequest
    | LeftBehindRequest
    | RevokeRequest
    | LockRequest
    | UnlockRequest
)

OPERATIONS: Final[dict[str, type[Operation]]] = {
    "issue": IssueRequest,
    "explain": ExplainRequest,
    "whoami": WhoamiRequest,
    "status": StatusRequest,
    "verify": VerifyRequest,
    "follow": FollowRequest,
    "report": ReportRequest,
    "sessions": SessionsRequest,
    "left_behind": LeftBehindRequest,
    "revoke": RevokeRequest,
    "lock": LockRequest,
    "unlock": UnlockRequest,
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
        form = _FORMS.get(key, _TEXT)
        if not form.fits(value):
            raise _invalid(f"'{key}' must be {form.words}", request_id)
        if isinstance(value, list):
            fields[key] = tuple(value)
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


class _Form(NamedTuple):
    """What a parameter must be, for us and for people."""

    fits: Callable[[Any], bool]
    words: str


def _each(value: Any, fits: Callable[[Any], bool]) -> bool:  # noqa: ANN401
    return isinstance(value, list) and len(value) <= MAX_ITEMS and all(map(fits, value))


_TEXT: Final = _Form(_is_text, f"a string of at most {MAX_TEXT} printable characters")
_KERNEL_ID: Final = _Form(lambda value: _is_uint(value, MAX_ID), "a number between 0 and 4294967295")
_FORMS: Final[Mapping[str, _Form]] = {
    "ttl": _Form(lambda value: _is_uint(value, MAX_ID) and value > 0, "a positive whole number of seconds"),
    "binding": _Form(lambda value: value in list(Binding), "one of uid, unit, process"),
    "pid": _Form(lambda value: _is_uint(value, 2**31 - 1) and value > 0, "a process id"),
    "uid": _KERNEL_ID,
    "gid": _KERNEL_ID,
    "groups": _Form(lambda value: _each(value, _KERNEL_ID.fits), "a list of group ids"),
    "seq": _Form(lambda value: _is_uint(value, 2**53), "a number"),
    "opened": _Form(lambda value: _each(value, lambda item: isinstance(item, dict)), "a list of maps"),
    "closed": _Form(lambda value: _each(value, _is_text), "a list of strings"),
    "left_behind": _Form(lambda value: _each(value, lambda item: isinstance(item, dict)), "a list of maps"),
}
"""Parameters that are not text."""


def _invalid(message: str, request_id: int) -> InvalidRequestError:
    return InvalidRequestError(ErrorCode.INVALID_REQUEST, message, request_id)
