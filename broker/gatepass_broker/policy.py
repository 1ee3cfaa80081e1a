"""The policy: who may have which tokens. Values in, values out; nothing here reads a file or a clock.

The first rule whose selectors all match the caller is the only one that counts. A request that goes beyond it is
denied with the reason: it is never trimmed to fit and never tried on a later rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

from gatepass.claims import split_scope
from gatepass.errors import DeniedError, ErrorCode
from gatepass.messages import Binding, IssueRequest
from gatepass_broker.caller import Caller
from gatepass_broker.names import ANY, beginning, beneath, scope_pattern, unit_pattern
from gatepass_broker.operator_scopes import OPERATOR_SCOPES

Fact: TypeAlias = int | str


class Condition(NamedTuple):
    """One selector of a rule. It holds if a fact of its kind about the caller is among `values` or fits `pattern`."""

    key: str
    """As in a `[[rule]]`."""
    wanted: str
    """What it asks for, for people."""
    values: frozenset[Fact]
    pattern: re.Pattern[str] | None = None


Selector: TypeAlias = tuple[Condition, ...]
"""Which callers a rule is for: each condition must hold. One without conditions is for nobody."""


class Mismatch(NamedTuple):
    """Why a rule is not for a caller: the first of its conditions that does not hold."""

    selector: str
    """The condition's key."""
    wanted: str
    found: str
    """What is so instead; 'unknown' where it could not be learned."""


class Grant(NamedTuple):
    """What a rule gives."""

    rule: str
    """The rule's name, for the journal."""
    identity: str
    audiences: tuple[str, ...]
    """At least one; the first is the default."""
    scopes: tuple[str, ...]
    """By name, sorted."""
    max_ttl: int
    """Longest life of a token in seconds."""
    scope_patterns: tuple[str, ...] = ()
    """Sorted; `*` in them stands for any characters of a scope name."""
    binding: Binding = Binding.UID
    """What its tokens are bound to at least."""
    reconnect: int = 0
    """For how many seconds from issue a client that has logged in may log in again."""
    per_minute: int | None = None
    """Tokens that one user may have by this rule in a minute; None for any number."""

    @property
    def default_scope(self) -> tuple[str, ...]:
        """What a request that names no scope gets, sorted: the names, and OpenClaw's that the patterns cover."""
        return _default_scope(self.scopes, self.scope_patterns) if self.scope_patterns else self.scopes

    def covers(self, scope: str) -> bool:
        """Whether a token may say this scope."""
        return scope in self.scopes or any(scope_pattern(pattern).fullmatch(scope) for pattern in self.scope_patterns)


class Rule(NamedTuple):
    """One rule of the configuration."""

    selector: Selector
    grant: Grant


class Terms(NamedTuple):
    """What a token is to say, as agreed between a request and its grant."""

    audience: str
    scope: tuple[str, ...]
    ttl: int
    binding: Binding = Binding.UID


def condition(key: str, *values: Fact, wanted: str = "") -> Condition:
    """Return the condition that `key` of a `[[rule]]` with these values stands for; names are ids already.

    `wanted` says them to people, where the values themselves do not.
    """
    expressions = [_expression(key, value) for value in values if isinstance(value, str)]
    patterns = [expression for expression in expressions if expression is not None]
    return Condition(
        key=key,
        wanted=wanted or ", ".join(map(str, values)) or "nobody",
        values=frozenset(values),
        pattern=re.compile("|".join(patterns)) if patterns else None,
    )


def find_grant(rules: tuple[Rule, ...], caller: Caller) -> Grant | None:
    """Return the grant of the first rule that matches `caller`, or None: the default is to deny.

    A caller whose uid is unknown has no grant, whatever its groups: a token is bound to a uid.
    """
    facts = _Facts(caller)
    for rule in rules:
        if _first_failing(rule.selector, facts) is None:
            return rule.grant
    return None


def first_mismatch(selector: Selector, caller: Caller) -> Mismatch | None:
    """Return why `caller` is not one whom `selector` means, or None if it is."""
    failing = _first_failing(selector, _Facts(caller))
    return None if failing is None else Mismatch(failing.key, failing.wanted, _found(failing.key, caller))


def agree(request: IssueRequest, grant: Grant, default_ttl: int, caller: Caller) -> Terms:
    """Return what the requested token will say. Raise `DeniedError` if that goes beyond the grant, or cannot be."""
    return Terms(
        audience=_audience(request, grant),
        scope=_scope(request, grant),
        ttl=_ttl(request, grant, default_ttl),
        binding=_binding(request, grant, caller),
    )


def asked_binding(request: IssueRequest) -> Binding:
    """Return what a request wants its token to be bound to at least."""
    return Binding.UID if request.binding is None else Binding(request.binding)


def can_bind(binding: Binding, caller: Caller) -> bool:
    """Whether what a token with this binding is bound to is known of `caller`."""
    match binding:
        case Binding.UID:
            return True
        case Binding.UNIT:
            # Everything lies in the root: to be bound to that would be to be bound to nothing.
            cgroup = caller.cgroup
            return cgroup is not None and cgroup.unit_id is not None and cgroup.path != "/"
        case Binding.PROCESS:
            return caller.process is not None and caller.pid is not None


# Facts: what is known of a caller, by selector. Nothing where it is unknown, so that unknown never matches.


def _of_uid(caller: Caller) -> Collection[Fact]:
    return () if caller.uid is None else (caller.uid,)


def _of_gid(caller: Caller) -> Collection[Fact]:
    return caller.groups if caller.gid is None else caller.groups | {caller.gid}


def _of_unit(caller: Caller) -> Collection[Fact]:
    return () if caller.cgroup is None or caller.cgroup.unit is None else (caller.cgroup.unit,)


def _of_user_unit(caller: Caller) -> Collection[Fact]:
    cgroup = caller.cgroup
    if cgroup is None or cgroup.user_unit is None or cgroup.manager_uid != caller.uid:
        return ()
    return (cgroup.user_unit,)


def _of_slice(caller: Caller) -> Collection[Fact]:
    return () if caller.cgroup is None else caller.cgroup.slices


def _of_user_slice(caller: Caller) -> Collection[Fact]:
    cgroup = caller.cgroup
    return () if cgroup is None or cgroup.manager_uid != caller.uid else cgroup.user_slices


def _of_cgroup(caller: Caller) -> Collection[Fact]:
    return () if caller.cgroup is None else (caller.cgroup.path,)


def _of_container(caller: Caller) -> Collection[Fact]:
    return () if caller.cgroup is None or caller.cgroup.container is None else (caller.cgroup.container,)


def _of_pid_namespace(caller: Caller) -> Collection[Fact]:
    return () if caller.nested is None else ("nested" if caller.nested else "host",)


_FACTS: Final[Mapping[str, Callable[[Caller], Collection[Fact]]]] = {
    "uid": _of_uid,
    "user": _of_uid,
    "gid": _of_gid,
    "group": _of_gid,
    "unit": _of_unit,
    "user_unit": _of_user_unit,
    "slice": _of_slice,
    "user_slice": _of_user_slice,
    "cgroup": _of_cgroup,
    "container": _of_container,
    "pid_namespace": _of_pid_namespace,
}
SELECTORS: Final = tuple(_FACTS)
"""The keys of a `[[rule]]` that say whom it is for, in the order in which they are looked at."""
_OF_CONNECTION: Final = frozenset({"uid", "user", "gid", "group"})

_KNOWN_USER: Final = Condition("uid", "a user who is known", frozenset())
_NO_CONDITIONS: Final = Condition("uid", "nobody: the rule has no selector", frozenset())


class _Facts(dict[str, Collection[Fact]]):
    """The facts about one caller, each looked up when a rule first asks for it."""

    def __init__(self, caller: Caller) -> None:
        super().__init__()
        self._caller = caller

    def __missing__(self, key: str) -> Collection[Fact]:
        facts = self[key] = _FACTS[key](self._caller)
        return facts


def _first_failing(selector: Selector, facts: _Facts) -> Condition | None:
    if not facts["uid"]:
        return _KNOWN_USER
    if not selector:
        return _NO_CONDITIONS
    for entry in selector:
        found = facts[entry.key]
        if entry.values.isdisjoint(found) and not (entry.pattern and _fits(entry.pattern, found)):
            return entry
    return None


def _fits(pattern: re.Pattern[str], facts: Collection[Fact]) -> bool:
    return any(isinstance(fact, str) and pattern.fullmatch(fact) for fact in facts)


def _expression(key: str, value: str) -> str | None:
    """Return a regular expression for what a selector's value means besides itself, or None if that is nothing."""
    if key == "cgroup":
        return beneath(value)
    if key == "container":
        return beginning(value)
    return unit_pattern(value) if ANY in value else None


@lru_cache(maxsize=64)  # of one explanation: a caller can be in thousands of groups, and there can be as many rules
def _found(key: str, caller: Caller) -> str:
    facts = _FACTS[key](caller)
    if facts:
        return ", ".join(map(str, sorted(facts) if key in ("gid", "group") else facts))
    cgroup = caller.cgroup
    if key in _OF_CONNECTION or key == "pid_namespace" or cgroup is None:
        return "unknown"
    if key in ("user_unit", "user_slice") and cgroup.manager_uid not in (None, caller.uid):
        return f"none of its own; it runs in the manager of uid {cgroup.manager_uid}"
    return "none"


# Terms: each is what is asked for, if the grant allows it.


def _audience(request: IssueRequest, grant: Grant) -> str:
    if request.audience is None:
        return grant.audiences[0]
    if request.audience not in grant.audiences:
        raise _denied(f"audience '{request.audience}' is not granted; granted: {', '.join(grant.audiences)}")
    return request.audience


def _scope(request: IssueRequest, grant: Grant) -> tuple[str, ...]:
    if request.scope is None:
        return grant.default_scope
    wanted = split_scope(request.scope)
    beyond = [scope for scope in wanted if not grant.covers(scope)]
    if beyond:
        granted = " ".join((*grant.scopes, *grant.scope_patterns)) or "none"
        raise _denied(f"scope '{' '.join(beyond)}' is not granted; granted: {granted}")
    return wanted


def _ttl(request: IssueRequest, grant: Grant, default_ttl: int) -> int:
    if request.ttl is None:
        return min(default_ttl, grant.max_ttl)
    if request.ttl > grant.max_ttl:
        raise _denied(f"a life of {request.ttl} s is not granted; ask for at most {grant.max_ttl} s")
    return request.ttl


def _binding(request: IssueRequest, grant: Grant, caller: Caller) -> Binding:
    """Return the stricter of what the rule and the request demand. What each demands must be known of the caller."""
    asked = asked_binding(request)
    for binding, cure in (
        (grant.binding, f"the rule '{grant.rule}' demands it (`bind`)"),
        (asked, "ask without binding"),
    ):
        if not can_bind(binding, caller):
            raise _denied(f"{_UNBINDABLE[binding]}; {cure}")
    return max(asked, grant.binding, key=_STRICTNESS.__getitem__)


_STRICTNESS: Final = {binding: rank for rank, binding in enumerate(Binding)}

_UNBINDABLE: Final = {
    Binding.UNIT: "the token cannot be bound to your unit, because your cgroup could not be learned, or is the root "
    "of all: that takes cgroup v2, a unit or a container, and a process that the broker's own pid namespace holds; "
    "connect from there",
    Binding.PROCESS: "the token cannot be bound to your process, because the kernel does not say which one it is: that "
    "takes Linux 6.9 (pidfs), and a process that the broker's own pid namespace holds; connect from there",
}


@lru_cache(maxsize=1_024)
def _default_scope(scopes: tuple[str, ...], patterns: tuple[str, ...]) -> tuple[str, ...]:
    covered = (name for name in OPERATOR_SCOPES if any(scope_pattern(pattern).fullmatch(name) for pattern in patterns))
    return tuple(sorted({*scopes, *covered}))


def _denied(reason: str) -> DeniedError:
    return DeniedError(ErrorCode.DENIED, reason)
