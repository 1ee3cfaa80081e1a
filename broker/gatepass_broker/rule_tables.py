"""What `[[rule]]` tables mean: names looked up, values checked, rules made of them.

Users and groups are looked up in the system's databases, and nothing else outside is touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from gatepass.daemon.toml_tables import gid_of, uid_of
from gatepass.errors import ConfigurationError
from gatepass.messages import Binding
from gatepass_broker.names import ANY, is_audience, is_cgroup, is_container, is_scope_or_pattern, is_slice, is_unit
from gatepass_broker.peer import overflow_gid, overflow_uid
from gatepass_broker.policy import SELECTORS, Condition, Fact, Grant, Rule, Selector, condition
from gatepass_broker.schema import BrokerTable, RuleTable

_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e]+( [\x21-\x7e]+)*")
"""An identity ends up in an HTTP header, so it is what every proxy passes on unchanged."""


def rules_of(
    tables: tuple[RuleTable, ...], broker: BrokerTable, before: tuple[Rule, ...] = (), file: str = ""
) -> tuple[Rule, ...]:
    """Return the rules `before` and those in `tables`, of a file in `conf.d` if `file` names one.

    Raise `ConfigurationError`.
    """
    rules = [*before]
    taken = {rule.grant.rule for rule in before}
    for number, table in enumerate(tables):
        where = f"rule[{number}]"
        name = table.name or (f"{file}:{where}" if file else where)
        _check_rule_name(name, taken, f"{where}.name")
        taken.add(name)
        rules.append(_rule(table, name, where, broker))
    return tuple(rules)


def check_identity(text: str, where: str) -> str:
    """Return `text` if it can be an identity. Raise `ConfigurationError`."""
    if text.count("@") > 1:
        raise ConfigurationError(f"'{text}' has more than one '@'", where=where)
    return _allowed(_HEADER_VALUE.fullmatch(text) is not None, text, where)


def check_audience(text: str, where: str) -> str:
    """Return `text` if it can be an audience. Raise `ConfigurationError`."""
    return _allowed(is_audience(text), text, where)


def _rule(table: RuleTable, name: str, where: str, broker: BrokerTable) -> Rule:
    if not table.audiences:
        raise ConfigurationError("name at least one audience", where=f"{where}.audiences")
    max_ttl = broker.max_ttl if table.max_ttl is None else table.max_ttl
    if max_ttl > broker.max_ttl:
        raise ConfigurationError(f"{max_ttl} is more than broker.max_ttl, {broker.max_ttl}", where=f"{where}.max_ttl")
    scopes = sorted({_allowed(is_scope_or_pattern(name), name, f"{where}.scopes") for name in table.scopes})
    grant = Grant(
        rule=name,
        identity=check_identity(table.identity or broker.loopback_user, f"{where}.identity"),
        audiences=tuple(check_audience(name, f"{where}.audiences") for name in table.audiences),
        scopes=tuple(scope for scope in scopes if ANY not in scope),
        max_ttl=max_ttl,
        scope_patterns=tuple(scope for scope in scopes if ANY in scope),
        binding=Binding(table.bind),
        reconnect=table.reconnect,
        per_minute=table.per_minute,
    )
    return Rule(_selector(table, where), grant)


def _check_rule_name(name: str, taken: set[str], where: str) -> None:
    if not name.isprintable():
        raise ConfigurationError(f"{name!r} has characters that cannot be printed", where=where)
    if name in taken:
        raise ConfigurationError(
            f"another rule has the name '{name}', and the journal tells rules by their names; choose one of its own",
            where=where,
        )


def _selector(table: RuleTable, where: str) -> Selector:
    selector = tuple(_conditions(table, where))
    if not selector:
        raise ConfigurationError(f"say whom this rule is for: at least one of {', '.join(SELECTORS)}", where=where)
    return selector


def _conditions(table: RuleTable, where: str) -> Iterator[Condition]:
    """Yield what a rule asks of its callers. An empty list matches nobody."""
    for key in SELECTORS:
        named = getattr(table, key)
        if named is None:
            continue
        items = named if isinstance(named, tuple) else (named,)
        values = [_VALUE[key](item, f"{where}.{key}") for item in items]
        words = (str(item) if item == value else f"{item} ({value})" for item, value in zip(items, values, strict=True))
        yield condition(key, *values, wanted=", ".join(words))


def _known_uid(uid: int, where: str) -> int:
    if uid == overflow_uid():
        raise ConfigurationError(
            f"uid {uid} stands for users whom the kernel cannot name: it never matches", where=where
        )
    return uid


def _known_gid(gid: int, where: str) -> int:
    if gid == overflow_gid():
        raise ConfigurationError(
            f"gid {gid} stands for groups that the kernel cannot name: it never matches", where=where
        )
    return gid


def _unit(name: str, where: str) -> str:
    if not is_unit(name):
        raise ConfigurationError(
            f"{name!r} is not the full name of a unit that has processes, such as openclaw.service, openclaw@*.service "
            "or session-*.scope; for slices there are `slice` and `user_slice`",
            where=where,
        )
    return name


def _slice(name: str, where: str) -> str:
    if not is_slice(name):
        raise ConfigurationError(f"{name!r} is not the full name of a slice, such as agents.slice", where=where)
    return name


def _cgroup(path: str, where: str) -> str:
    if not is_cgroup(path):
        raise ConfigurationError(
            f"{path!r} is not the path of a cgroup from the root of the hierarchy, such as "
            "/system.slice/openclaw.service: without '..', '//' and a '/' at its end",
            where=where,
        )
    return path


def _container(text: str, where: str) -> str:
    if not is_container(text):
        raise ConfigurationError(
            f"{text!r} is not a container's id: 64 hexadecimal digits in lower case, or the first 12 of them or more",
            where=where,
        )
    return text


_VALUE: Final[Mapping[str, Callable[[Any, str], Fact]]] = {
    "uid": _known_uid,
    "user": lambda name, where: _known_uid(uid_of(name, where), where),
    "gid": _known_gid,
    "group": lambda name, where: _known_gid(gid_of(name, where), where),
    "unit": _unit,
    "user_unit": _unit,
    "slice": _slice,
    "user_slice": _slice,
    "cgroup": _cgroup,
    "container": _container,
    "pid_namespace": lambda name, _: str(name),
}
"""What a value of each selector is to the policy. The form is checked already."""


def _allowed(is_so: bool, text: str, where: str) -> str:
    if not is_so:
        raise ConfigurationError(
            f'{text!r} is not allowed here: use printable ASCII, no space at an end; in a scope no space, \\ or "',
            where=where,
        )
    return text
