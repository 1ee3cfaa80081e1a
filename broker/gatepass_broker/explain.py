"""How a request for a token would be decided, and why, and what would change that. Values in, values out.

`judge` decides here as it does for the request itself. What is added is what was seen, each rule with the first of its
selectors that fails, and the cures.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from gatepass.claims import join_scope
from gatepass.errors import DeniedError, GatepassError, TryLaterError
from gatepass.frames import Message
from gatepass.messages import IssueRequest
from gatepass_broker.caller import Caller
from gatepass_broker.cures import Attempt, cures
from gatepass_broker.judge import Agreed, Rules, judge
from gatepass_broker.policy import Grant, find_grant, first_mismatch
from gatepass_broker.state import State

MAX_RULES_BYTES: Final = 16_384
"""So much of a reply, which is 64 KiB at most, may be about rules."""
MAX_GROUPS: Final = 1_024
MAX_TEXT: Final = 256
"""Characters of one name or path that are shown."""
_ENTRY_BYTES: Final = 80
"""Of an entry about a rule, besides its texts."""


def explain(  # noqa: PLR0913 - what a decision depends on
    rules: Rules, state: State, caller: Caller, request: IssueRequest, *, exited: bool, time: float, as_admin: bool
) -> Message:
    """Return `caller`, `rules`, `decision` and `cures` for a request by `caller` at `time` (seconds since the epoch).

    `rules` are those that there is room for, the one that matches always among them; `rules_left_out`, where it is
    there, counts the others. `as_admin` says that the answer is for somebody else than the caller.
    """
    grant = find_grant(rules.rules, caller)
    try:
        outcome: Agreed | GatepassError = judge(rules, state, caller, request, exited=exited, time=time)
    except (DeniedError, TryLaterError) as error:
        outcome = error
    shown = _rules(rules, caller)
    left_out = len(rules.rules) - len(shown)
    return {
        "caller": _caller(caller),
        "rules": shown,
        **({"rules_left_out": left_out} if left_out else {}),
        "decision": _granted(outcome) if isinstance(outcome, Agreed) else _refused(outcome, grant),
        "cures": []
        if isinstance(outcome, Agreed)
        else cures(outcome, Attempt(rules, caller, request, grant, exited, as_admin)),
    }


def _caller(caller: Caller) -> Message:
    cgroup = caller.cgroup
    groups = sorted(caller.groups)
    return {
        "uid": caller.uid,
        "gid": caller.gid,
        "groups": groups[:MAX_GROUPS],
        **({"groups_left_out": len(groups) - MAX_GROUPS} if len(groups) > MAX_GROUPS else {}),
        "pid": caller.pid,
        "unit": None if cgroup is None else _shown(cgroup.unit),
        "slices": None if cgroup is None else _each_shown(cgroup.slices),
        "manager_uid": None if cgroup is None else cgroup.manager_uid,
        "user_unit": None if cgroup is None else _shown(cgroup.user_unit),
        "user_slices": None if cgroup is None else _each_shown(cgroup.user_slices),
        "cgroup": None if cgroup is None else _shown(cgroup.path),
        "container": None if cgroup is None else _shown(cgroup.container),
        "pid_namespace": None if caller.nested is None else "nested" if caller.nested else "host",
    }


def _rules(rules: Rules, caller: Caller) -> list[Message]:
    """Return what is to be said of each rule, as far as there is room: the one that decides always."""
    entries: list[Message] = []
    room, matched = MAX_RULES_BYTES, False
    for rule in rules.rules:
        mismatch = first_mismatch(rule.selector, caller)
        failed = None if mismatch is None else {name: _shown(text) for name, text in mismatch._asdict().items()}
        entry = {"rule": _shown(rule.grant.rule), "matches": mismatch is None, "failed": failed, "skipped": matched}
        room -= _size([entry["rule"], *(failed or {}).values()])
        if room >= 0 or (mismatch is None and not matched):
            entries.append(entry)
        matched = matched or mismatch is None
    return entries


def _size(texts: Iterable[Any]) -> int:
    return _ENTRY_BYTES + sum(len(str(text).encode()) for text in texts)


def _granted(agreed: Agreed) -> Message:
    return {
        "allowed": True,
        "code": None,
        "reason": None,
        "rule": agreed.grant.rule,
        "identity": agreed.grant.identity,
        "audience": agreed.terms.audience,
        "scope": join_scope(agreed.terms.scope),
        "ttl": agreed.terms.ttl,
        "binding": agreed.terms.binding.value,
    }


def _refused(error: GatepassError, grant: Grant | None) -> Message:
    return {
        "allowed": False,
        "code": error.code.value,
        "reason": error.message,
        **({} if error.retry_after is None else {"retry_after": error.retry_after}),
        "rule": None if grant is None else grant.rule,
        "identity": None,
        "audience": None,
        "scope": None,
        "ttl": None,
        "binding": None,
    }


def _each_shown(names: tuple[str, ...]) -> list[str | None]:
    """Return names in their order: slices, the outermost first."""
    return [_shown(name) for name in names]


def _shown(text: str | None) -> str | None:
    """Return `text`, which users may have chosen, so that it can be sent and printed: what cannot is escaped."""
    if text is None:
        return None
    if not text.isprintable():
        text = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
