"""What would have a refused request allowed. Values in, values out.

A cure is one step. What it leads to can be refused for the next reason, whose explanation has the next step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from gatepass.claims import join_scope, split_scope
from gatepass.errors import DeniedError, ErrorCode, GatepassError
from gatepass.frames import Message
from gatepass.messages import Binding, IssueRequest
from gatepass_broker.caller import Caller
from gatepass_broker.judge import Rules
from gatepass_broker.names import is_audience, is_literal_unit, is_scope
from gatepass_broker.policy import Grant, Selector, agree, asked_binding, can_bind

DEFAULT_SCOPES: Final = ("operator.read",)
"""What a rule is proposed with where the request names none: the least that is of use."""

_SESSION: Final = re.compile(r"session-c?[0-9]+\.scope")
"""The unit of a login (systemd-logind); the next login is in another."""


class Attempt(NamedTuple):
    """A request that was refused, with what the refusal depends on."""

    rules: Rules
    caller: Caller
    request: IssueRequest
    grant: Grant | None
    """Of the first rule that matches."""
    exited: bool
    as_admin: bool
    """Whether the cures are for somebody else than the caller."""


def cures(error: GatepassError, attempt: Attempt) -> list[Message]:
    """Return what can be done about the refusal `error`, at least one thing, the least intrusive first.

    Each has `kind` and `text`. `request`: ask with `arguments` instead. `policy`: `toml`, a `[[rule]]` for `place`,
    which is "last" or "before RULE". `wait`: `seconds`. `unlock`, `caller`: what the text says.
    """
    match error.code:
        case ErrorCode.LOCKED:
            return [_cure("unlock", "end the lock, as an administrator: gatepass unlock")]
        case ErrorCode.RATE_LIMITED:
            seconds = error.retry_after or 0
            return [_cure("wait", f"ask again in {seconds} s, and keep a token for its life", seconds=seconds)]
        case ErrorCode.CONNECT_AGAIN:
            return [
                _cure("caller", "connect again: by then the process has run for long enough to be known for certain")
            ]
    return [*_of_denial(attempt)]


def _of_denial(attempt: Attempt) -> Iterator[Message]:
    if attempt.exited:
        yield _cure("caller", "connect from the process that asks, and keep it running until it has its answer")
    elif attempt.caller.uid is None:
        yield _cure(
            "caller", "connect from outside of the user namespace: inside it the kernel cannot tell the broker the user"
        )
    elif attempt.grant is not None:
        yield from _beyond(attempt, attempt.grant)
    elif attempt.rules.source is None:
        yield _cure(
            "caller",
            "ask as the user who started this broker, or have one for the whole machine: gatepass-broker --config FILE",
        )
    else:
        yield _policy(attempt)


def _beyond(attempt: Attempt, grant: Grant) -> Iterator[Message]:
    """Yield what helps where a rule matches and does not give what is asked for."""
    nearest = _nearest(attempt, grant)
    if nearest is not None:
        arguments = {name: value for name, value in nearest._asdict().items() if value is not None}
        yield _cure("request", f"ask for what the rule '{grant.rule}' gives", arguments=arguments)
    if attempt.rules.source is not None and (nearest is None or _can_be_granted(attempt)):
        yield _policy(attempt)
    for binding in sorted({grant.binding, asked_binding(attempt.request)} - {Binding.UID}):
        if not can_bind(binding, attempt.caller):
            yield _cure("caller", _BINDABLE[binding])


_BINDABLE: Final = {
    Binding.UNIT: "connect from a process whose cgroup the broker can learn: on a machine with cgroup v2, and in the "
    "broker's own pid namespace or one beneath it",
    Binding.PROCESS: "connect from a process that the kernel can tell from all others: on Linux 6.9 or later, and in "
    "the broker's own pid namespace or one beneath it",
}


def _nearest(attempt: Attempt, grant: Grant) -> IssueRequest | None:
    """Return the request that is allowed and nearest to the one that was not; None if the rule allows none at all."""
    request = attempt.request
    scope = None
    if request.scope is not None:
        wanted = split_scope(request.scope)
        allowed = tuple(filter(grant.covers, wanted))
        scope = join_scope(allowed if allowed or not wanted else grant.default_scope)
    nearest = IssueRequest(
        audience=None if request.audience is None else _audience(request.audience, grant),
        scope=scope,
        ttl=None if request.ttl is None else min(request.ttl, grant.max_ttl),
        binding=None if request.binding is None else _bindable(asked_binding(request), attempt.caller).value,
    )
    try:
        agree(nearest, grant, attempt.rules.default_ttl, attempt.caller)
    except DeniedError:
        return None
    return nearest


def _audience(wanted: str, grant: Grant) -> str:
    return wanted if wanted in grant.audiences else grant.audiences[0]


def _bindable(wanted: Binding, caller: Caller) -> Binding:
    """Return the strictest binding up to `wanted` that a token for `caller` can have."""
    kinds = list(Binding)
    return next(kind for kind in reversed(kinds[: kinds.index(wanted) + 1]) if can_bind(kind, caller))


def _can_be_granted(attempt: Attempt) -> bool:
    """Whether there can be a rule that gives exactly what is asked for."""
    request = attempt.request
    return (
        (request.audience is None or is_audience(request.audience))
        and all(map(is_scope, split_scope(request.scope or "")))
        and (request.ttl is None or request.ttl <= attempt.rules.max_ttl)
        and can_bind(asked_binding(request), attempt.caller)
    )


def _policy(attempt: Attempt) -> Message:
    """Return the cure that is a rule for this caller and what it asks for, as far as any rule can give that."""
    grant, source = attempt.grant, attempt.rules.source
    place = "last" if grant is None else f"before {grant.rule}"
    if grant is None:
        where = f"after the others in {source}, or into a file of its own in conf.d"
    else:
        where = f"before the rule '{grant.rule}', in the file that has that"
    who = "have" if attempt.as_admin else "ask an administrator to have"
    rule = {"name": _name(attempt), **_whom(attempt), **_gives(attempt)}
    lines = [f"{key} = {_toml(value)}" for key, value in rule.items()]
    return _cure(
        "policy",
        f"{who} this rule put {where}, and reload the broker",
        toml="\n".join(["[[rule]]", *lines, ""]),
        place=place,
    )


def _name(attempt: Attempt) -> str:
    """Return a name that no rule has."""
    taken = {rule.grant.rule for rule in attempt.rules.rules}
    wanted = f"uid {attempt.caller.uid}"
    return next(name for name in (wanted, *(f"{wanted} ({n})" for n in range(2, len(taken) + 3))) if name not in taken)


def _whom(attempt: Attempt) -> Mapping[str, Any]:
    """Return selectors for the caller and few others: its user, and its unit where no user can have named that.

    Where another rule matches, what that asks for stays asked for: its place is taken for nobody whom it is not for.
    """
    caller = attempt.caller
    whom: dict[str, Any] = {"uid": caller.uid}
    unit = None if caller.cgroup is None else caller.cgroup.unit
    if unit is not None and is_literal_unit(unit):
        whom["unit"] = "session-*.scope" if _SESSION.fullmatch(unit) else unit
    for entry in _conditions(attempt):
        if entry.key not in ("uid", "user", "gid", "group", *whom):
            whom[entry.key] = sorted(map(str, entry.values))
    groups = [entry.values for entry in _conditions(attempt) if entry.key in ("gid", "group")]
    if groups:
        whom["gid"] = sorted(gid for gid in min(groups, key=len) if isinstance(gid, int))
    return whom


def _conditions(attempt: Attempt) -> Selector:
    """Return what the rule asks for that matches; nothing if none does."""
    return next((rule.selector for rule in attempt.rules.rules if rule.grant is attempt.grant), ())


def _gives(attempt: Attempt) -> Mapping[str, Any]:
    """Return the other keys of the rule: what is asked for, as far as any rule can give that.

    Where another rule matches, this one takes its place for the caller, so it gives all that that gives as well.
    """
    request, grant, rules = attempt.request, attempt.grant, attempt.rules
    audiences = [] if request.audience is None or not is_audience(request.audience) else [request.audience]
    scopes = [scope for scope in split_scope(request.scope or "") if is_scope(scope)]
    if grant is None:
        return {
            **({"audiences": audiences} if audiences else {}),
            "scopes": scopes if request.scope is not None else [*DEFAULT_SCOPES],
            "max_ttl": min(request.ttl or rules.default_ttl, rules.max_ttl),
            "bind": _bindable(asked_binding(request), attempt.caller).value,
        }
    return {
        "audiences": _together(grant.audiences, audiences),
        "scopes": _together(
            (*grant.scopes, *grant.scope_patterns), [each for each in scopes if not grant.covers(each)]
        ),
        "max_ttl": max(grant.max_ttl, min(request.ttl or 1, rules.max_ttl)),
        "bind": _bindable(grant.binding, attempt.caller).value,
        "identity": grant.identity,
        "reconnect": grant.reconnect,
        **({} if grant.per_minute is None else {"per_minute": grant.per_minute}),
    }


def _together(given: tuple[str, ...], asked: list[str]) -> list[str]:
    return list(dict.fromkeys((*given, *asked)))


def _toml(value: str | int | list[str] | list[int]) -> str:
    """Return a value as TOML. All strings here are printable ASCII, of which JSON and TOML have the same form."""
    return json.dumps(value)


def _cure(kind: str, text: str, **members: Any) -> Message:  # noqa: ANN401 - of a message
    return {"kind": kind, "text": text, **members}
