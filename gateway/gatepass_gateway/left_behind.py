"""What a session leaves behind at OpenClaw: read from the requests and answers that pass. Pure.

Methods and answers are OpenClaw's (its docs, gateway/protocol/rpc-devices-nodes-and-approvals; cli/devices, cli/nodes
and cli/cron for the commands). Nothing here changes or ends what passes: a list for the administrator, not a filter.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from gatepass.sessions import MAX_TEXT

MAX_MESSAGE: Final = 262_144
"""Bytes of the largest message that is read: a tenth of a second for ten of them at their worst."""
_MAX_PENDING: Final = 1_024
"""Requests without an answer; more are not followed."""


class Trace(NamedTuple):
    """Something that a request has left behind."""

    kind: str
    name: str
    removal: str


class _Method(NamedTuple):
    kind: str
    name: Callable[[dict[str, Any]], object]
    """Returns the id of what was made, from the payload of the answer; raises `KeyError` or `TypeError`."""
    removal: str
    """With `{}` for that id."""
    otherwise: str
    """What to do where the id cannot be written into a command."""


_DEVICES: Final = "openclaw devices list"
_METHODS: Final = {
    # With `declarationKey` the job is in a member of its own.
    "cron.add": _Method(
        "cron job", lambda payload: payload.get("job", payload)["id"], "openclaw cron rm {}", "openclaw cron list"
    ),
    "device.pair.approve": _Method(
        "device", lambda payload: payload["device"]["deviceId"], "openclaw devices remove {}", _DEVICES
    ),
    "device.token.rotate": _Method(
        "device", lambda payload: payload["deviceId"], "openclaw devices remove {}", _DEVICES
    ),
    # There is no command that takes a code back: it ends soon, but the device that it paired does not.
    "device.pair.setupCode": _Method("setup code", lambda payload: payload["setupId"], _DEVICES, _DEVICES),
    "node.pair.approve": _Method(
        "node", lambda payload: payload["node"]["nodeId"], "openclaw nodes remove --node={}", "openclaw nodes list"
    ),
}

_MAY_ASK: Final = re.compile(b"|".join([*(re.escape(name.encode()) for name in _METHODS), rb"\\u00"]))
"""Found in every request with one of these methods: JSON spells letters and dots as they are, or as \\u00XX."""
_ANSWER: Final = b'"res"'


def paired_device(device: str) -> Trace:
    """Return what the login with a setup code has left behind: the device that it paired, by its id."""
    method = _METHODS["device.pair.approve"]
    return Trace(method.kind, device, _removal(method, device))


class Watch:
    """Follows one session's requests. Messages are whole, as bytes of JSON."""

    def __init__(self) -> None:
        self._pending: dict[bytes, list[_Method]] = {}
        """By a digest of the request's id, which can be as long as a message."""
        self._count = 0

    @property
    def awaits_answer(self) -> bool:
        """Whether messages of the gateway can matter now."""
        return bool(self._pending)

    def request(self, message: bytes) -> bool:
        """Look at what the client sends. Return False for what may ask for something, but cannot be read here."""
        if not _MAY_ASK.search(message):
            return True
        try:
            request = _parse(message)
        except (ValueError, RecursionError):
            return False
        method, request_id = request.get("method"), request.get("id")
        known = _METHODS.get(method) if isinstance(method, str) else None
        if known is None or not isinstance(request_id, str):
            return True
        if self._count == _MAX_PENDING:
            return False
        # One id may stand for several requests: only an answer that fits takes one off, or a no to the only kind.
        self._pending.setdefault(_digest(request_id), []).append(known)
        self._count += 1
        return True

    def answer(self, message: bytes) -> Trace | None:
        """Look at what the gateway sends; return what that shows to have been left behind."""
        if _ANSWER not in message:
            return None
        try:
            answer = _parse(message)
        except (ValueError, RecursionError):
            return None
        request_id, payload = answer.get("id"), answer.get("payload")
        if not isinstance(request_id, str) or answer.get("type") != "res":
            return None
        digest = _digest(request_id)
        methods = self._pending.get(digest, [])
        if answer.get("ok") is False and len(set(map(id, methods))) == 1:
            self._done(digest, methods[0])
        if answer.get("ok") is not True or not isinstance(payload, dict):
            return None
        for method in methods:
            if name := _name(method, payload):
                self._done(digest, method)
                return Trace(method.kind, name, _removal(method, name))
        return None

    def _done(self, digest: bytes, method: _Method) -> None:
        self._count -= 1
        self._pending[digest].remove(method)
        if not self._pending[digest]:
            del self._pending[digest]


def _digest(request_id: str) -> bytes:
    return hashlib.sha256(request_id.encode("utf-8", "surrogatepass")).digest()


def _parse(message: bytes) -> dict[str, Any]:
    # As OpenClaw reads it: bytes that are no UTF-8 are replaced, and of two members of one name the last counts. A
    # number of thousands of digits is a float there, and an error to Python's int.
    value = json.loads(message.decode("utf-8", "replace"), parse_int=float)
    return value if isinstance(value, dict) else {}


def _name(method: _Method, payload: dict[str, Any]) -> str | None:
    try:
        name = method.name(payload)
    except (KeyError, TypeError):
        return None
    return name if isinstance(name, str) and name else None


def _removal(method: _Method, name: str) -> str:
    """Return the command that removes it. Its id is the gateway's word, and may have been a client's."""
    command = method.removal.format(shlex.quote(name))
    fits = name.isprintable() and not name.startswith("-") and len(command) <= MAX_TEXT
    return command if fits else method.otherwise
