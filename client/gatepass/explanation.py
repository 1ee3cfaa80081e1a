"""What the broker answers to `explain`, as values: why a request for a token is decided as it is. No I/O.

What the broker does not tell, or does not know, is None. A member that a newer broker adds is ignored; one of another
type is a `ProtocolError`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from gatepass.errors import ProtocolError
from gatepass.frames import Message
from gatepass.messages import field
from gatepass.replies import each, optional

_Item = TypeVar("_Item")


class Seen(NamedTuple):
    """Whom the broker saw. None is unknown, which matches no rule."""

    uid: int | None
    gid: int | None
    groups: tuple[int, ...]
    """Supplementary group ids."""
    groups_left_out: int
    """How many more there are."""
    pid: int | None
    unit: str | None
    """The system manager's unit that it runs in."""
    slices: tuple[str, ...]
    """The system manager's slices, outermost first."""
    manager_uid: int | None
    """The user whose own manager it runs under."""
    user_unit: str | None
    """That manager's unit, whose name its user chose."""
    user_slices: tuple[str, ...]
    cgroup: str | None
    """Path from the root of the hierarchy (v2)."""
    container: str | None
    """The container's id."""
    pid_namespace: str | None


class Failed(NamedTuple):
    """The first selector of a rule that did not match."""

    selector: str
    wanted: str | None
    found: str | None


class RuleFinding(NamedTuple):
    """One rule, held against the caller."""

    rule: str
    matches: bool
    skipped: bool
    """Whether a rule before it matched, so that this one was not needed."""
    failed: Failed | None


class Verdict(NamedTuple):
    """The decision, as a request for a token would get it."""

    allowed: bool
    code: str | None
    """An `ErrorCode`, where it would be refused."""
    reason: str | None
    retry_after: int | None
    """Seconds."""
    rule: str | None
    identity: str | None
    audience: str | None
    scope: str | None
    """Space-separated."""
    ttl: int | None
    """Life in seconds."""
    binding: str | None


class Cure(NamedTuple):
    """One thing to change so that it would be allowed."""

    kind: str
    text: str
    """A sentence."""
    toml: str | None
    """A rule to put into the configuration."""
    place: str | None
    """Where it goes among the rules: `last`, or `before NAME`."""
    arguments: dict[str, Any]
    """What to ask for instead: members of an `issue` request."""


class Explanation(NamedTuple):
    """How a request is decided, and why."""

    caller: Seen
    rules: tuple[RuleFinding, ...]
    """In the order in which they are tried. One that is left out did not match."""
    rules_left_out: int
    """How many are not shown, because a reply has no room for them."""
    decision: Verdict
    cures: tuple[Cure, ...]


def explanation_reply(result: Message) -> Explanation:
    """Return the result of an `explain` request. Raise `ProtocolError`."""
    return Explanation(
        caller=_seen(field(result, "caller", dict)),
        rules=tuple(_rule(entry) for entry in _each(result, "rules", dict)),
        rules_left_out=optional(result, "rules_left_out", int) or 0,
        decision=_verdict(field(result, "decision", dict)),
        cures=tuple(_cure(entry) for entry in _each(result, "cures", dict)),
    )


def _seen(caller: Message) -> Seen:
    return Seen(
        uid=optional(caller, "uid", int),
        gid=optional(caller, "gid", int),
        groups=_each(caller, "groups", int),
        groups_left_out=optional(caller, "groups_left_out", int) or 0,
        pid=optional(caller, "pid", int),
        unit=optional(caller, "unit", str),
        slices=_each(caller, "slices", str),
        manager_uid=optional(caller, "manager_uid", int),
        user_unit=optional(caller, "user_unit", str),
        user_slices=_each(caller, "user_slices", str),
        cgroup=optional(caller, "cgroup", str),
        container=optional(caller, "container", str),
        pid_namespace=_words(caller, "pid_namespace"),
    )


def _rule(entry: Message) -> RuleFinding:
    failed = optional(entry, "failed", dict)
    return RuleFinding(
        rule=field(entry, "rule", str),
        matches=field(entry, "matches", bool),
        skipped=optional(entry, "skipped", bool) or False,
        failed=None
        if failed is None
        else Failed(field(failed, "selector", str), _words(failed, "wanted"), _words(failed, "found")),
    )


def _verdict(decision: Message) -> Verdict:
    return Verdict(
        allowed=field(decision, "allowed", bool),
        code=optional(decision, "code", str),
        reason=optional(decision, "reason", str),
        retry_after=optional(decision, "retry_after", int),
        rule=optional(decision, "rule", str),
        identity=optional(decision, "identity", str),
        audience=optional(decision, "audience", str),
        scope=optional(decision, "scope", str),
        ttl=optional(decision, "ttl", int),
        binding=optional(decision, "binding", str),
    )


def _cure(entry: Message) -> Cure:
    return Cure(
        kind=field(entry, "kind", str),
        text=field(entry, "text", str),
        toml=optional(entry, "toml", str),
        place=optional(entry, "place", str),
        arguments=optional(entry, "arguments", dict) or {},
    )


def _each(message: Message, name: str, kind: type[_Item]) -> tuple[_Item, ...]:
    return () if message.get(name) is None else each(message, name, kind)


def _words(message: Message, name: str) -> str | None:
    """Return `message[name]` in words: what selectors want and find is text, numbers or lists of them."""
    match message.get(name):
        case None:
            return None
        case bool() as value:
            return "yes" if value else "no"
        case str() | int() as value:
            return str(value)
        case list() as items if all(isinstance(item, str | int) for item in items):
            return ", ".join(map(str, items))
    raise ProtocolError(f"'{name}' in the reply is neither text nor a number nor a list of these")
