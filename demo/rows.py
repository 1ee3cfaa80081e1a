"""A row of the table: what is tried, what must come of it, and what did. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from e2e.callers import Answer, Login

_NOT_OURS: Final = "in the gateway's own words"


class Outcome(NamedTuple):
    """What came of one request or login."""

    accepted: bool
    status: str
    """The HTTP status; for a WebSocket `in` or `refused`."""
    user: str | None = None
    """Whom the gateway takes the caller for; None if for nobody, or if it does not say."""
    code: str | None = None
    """gatepass's own word for a refusal."""
    sentence: str = ""
    """What a person gets to read."""


class Outcomes(NamedTuple):
    """What came of one row, over each of the two ways in. None where a way was not tried."""

    http: Outcome | None = None
    websocket: Outcome | None = None


class Expected(NamedTuple):
    """What must come of a row. The default is somebody who is in."""

    user: str | None = None
    """Whom the caller is taken for; None if it is refused."""
    status: int = 200
    code: str | None = None
    """Why it is refused, in gatepass's own word; None if in the words of the gateway behind."""


class Row(NamedTuple):
    """One thing that is tried."""

    title: str
    expected: Expected
    attempt: Callable[[], Outcomes] | None
    not_tried: str = ""
    """Why there is no attempt."""


def faults(expected: Expected, outcomes: Outcomes) -> list[str]:
    """Return a sentence for each way in which the outcomes are not what must be."""
    found = []
    for way, outcome in zip(("HTTP", "WebSocket"), outcomes, strict=True):
        if outcome is not None and not _is_as_expected(expected, outcome):
            found.append(f"over {way} it must be {_wanted(expected)}; it was {_found(outcome)}")
    return found if any(outcomes) else ["nothing was tried"]


def _is_as_expected(expected: Expected, outcome: Outcome) -> bool:
    if outcome.accepted != (expected.user is not None) or outcome.code != expected.code:
        return False
    if outcome.status.isdecimal() and outcome.status != str(expected.status):
        return False
    return outcome.user in (expected.user, None)


def _wanted(expected: Expected) -> str:
    if expected.user:
        return f"in as {expected.user}"
    return f"refused ({expected.status}), {expected.code or _NOT_OURS}"


def _found(outcome: Outcome) -> str:
    if outcome.accepted:
        return f"in as {outcome.user or 'somebody'}"
    return f"refused ({outcome.status}), {outcome.code or _NOT_OURS}: {outcome.sentence}"


def http_outcome(answer: Answer) -> Outcome:
    """Read an HTTP answer."""
    body, status = _object(answer.text), str(answer.status)
    if answer.status == 200:
        return Outcome(True, status, body.get("user"), None, _welcome(body))
    error = _object(body.get("error"))
    return Outcome(False, status, None, _code(error.get("code")), sentence_of(error.get("message")))


def websocket_outcome(login: Login) -> Outcome:
    """Read what came of a WebSocket login; one whose upgrade was refused got an HTTP answer."""
    if login.ok:
        body = _object(login.answers[0].get("payload")) if login.answers else {}
        return Outcome(True, "in", body.get("user"), None, _welcome({"scopes": login.scopes, **body}))
    if "status" in login.error:
        refused = http_outcome(Answer(login.error["status"], login.error["message"], []))
        return refused._replace(status="refused")
    code = _code(_object(login.error.get("details")).get("authReason"))
    return Outcome(False, "refused", None, code, sentence_of(login.error.get("message")))


def _welcome(body: Mapping[str, Any]) -> str:
    """Return user and scopes, as far as the gateway tells them."""
    return ": ".join(filter(None, (body.get("user"), " ".join(body.get("scopes") or ()))))


def _code(word: object) -> str | None:
    """Return our word in a code such as `gatepass_token_expired`."""
    return word.removeprefix("gatepass_") if isinstance(word, str) and word.startswith("gatepass_") else None


def sentence_of(message: object) -> str:
    """Return the reason in a message, without the cure that follows and the words for OpenClaw's clients before it."""
    ours = re.sub(r"^.*?gatepass: ", "", str(message or ""))
    return re.split(r"[:;] ", ours, maxsplit=1)[0]


def _object(value: object) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}
