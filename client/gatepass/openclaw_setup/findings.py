"""What `gatepass openclaw check` finds, each with its cure. Facts in, findings out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from gatepass.errors import ErrorCode, GatepassError
from gatepass.openclaw_setup.desired import ABSENT, Change
from gatepass.openclaw_setup.facts import TOKEN_VARIABLE, Facts
from gatepass.openclaw_setup.json5 import Json
from gatepass.openclaw_setup.launcher import launcher_faults
from gatepass.openclaw_setup.plan import Plan
from gatepass.openclaw_setup.present import dotted, shown
from gatepass.openclaw_setup.wishes import Wishes
from gatepass.paths import SYSTEM_SOCKET

SETUP: Final = "gatepass openclaw setup --write"


class Finding(NamedTuple):
    """Something that keeps OpenClaw's commands from logging in, or that will."""

    code: str
    """Stable: invalid, config, proxy_file, launcher, token_variable, broker, proxy_port, openclaw_port or answer."""
    where: str
    problem: str
    cure: str


class _Cures(NamedTuple):
    """The commands that mend: other ones where root has installed services."""

    setup: str
    broker: str
    unlock: str
    grant: str
    """So that the broker gives this user something."""
    identity: str
    """So that OpenClaw expects whom the broker says; {} is the name."""
    audience: str
    """So that tokens are for whom the proxy wants; {} is the name."""
    proxy: str
    openclaw: str


_RULES: Final = "a [[rule]] in /etc/gatepass/broker.toml, then: sudo systemctl reload gatepass-broker"
_OF_SERVICES: Final = _Cures(
    setup="sudo gatepass-broker install",
    broker="'systemctl status gatepass-broker' says what is wrong with it; if nothing is: "
    "sudo systemctl restart gatepass-broker.socket gatepass-broker",
    unlock="sudo gatepass unlock",
    grant=_RULES,
    identity="sudo gatepass-broker install --loopback-user {}",
    audience=f"'{{}}' among 'audiences' of {_RULES}",
    proxy="'systemctl status gatepass-gateway gatepass-redirect' says what is wrong with them; if nothing is: "
    "sudo systemctl restart gatepass-redirect gatepass-gateway.socket gatepass-gateway",
    openclaw="openclaw gateway start; as a system unit: sudo systemctl start openclaw-gateway",
)


def findings(plan: Plan, facts: Facts) -> tuple[Finding, ...]:
    """Return all findings, in the order in which they are best cured."""
    cures = _OF_SERVICES if is_installed(plan.wishes) else _by_hand(plan.wishes, facts)
    ports = (*_proxy_port(plan.wishes, facts, cures), *_openclaw_port(plan.wishes, facts, cures))
    return (
        *_configuration(plan, facts, cures),
        *_launcher(plan, facts, cures),
        *_broker(plan, facts, cures),
        *(ports or _answer(plan.wishes, facts, cures)),
    )


def is_installed(wishes: Wishes) -> bool:
    """Whether it is what `gatepass-broker install` sets up, as services."""
    return wishes.way == "redirect" and wishes.broker_socket == SYSTEM_SOCKET


def _by_hand(wishes: Wishes, facts: Facts) -> _Cures:
    broker = f"{facts.commands}/gatepass-broker --loopback-user {wishes.user}"
    return _Cures(
        setup=SETUP,
        broker=broker,
        unlock="gatepass unlock",
        grant=broker,
        identity=f"{SETUP} --loopback-user {{}}",
        audience=f"{broker} --audience {{}}",
        proxy=f"{facts.commands}/gatepass-gateway --config {facts.proxy_file}",
        openclaw=f"openclaw gateway run --port {wishes.openclaw_port}",
    )


def difference(change: Change) -> str:
    """Return the sentence that says what is wrong with a value."""
    name = dotted(change.path)
    if change.new is ABSENT:
        return f"{name} is set, and must not be: {change.reason}"
    is_now = "missing" if change.old is ABSENT else shown(change.path, change.old)
    return f"{name} is {is_now}, and has to be {shown(change.path, change.new)}: {change.reason}"


def _configuration(plan: Plan, facts: Facts, cures: _Cures) -> Iterator[Finding]:
    ours = {dotted(change.path) for change in plan.changes}
    for issue in facts.issues:
        if issue.path not in ours and not issue.path.startswith("secrets.providers.gatepass"):
            yield Finding(
                "invalid", facts.config, f"OpenClaw says: {issue.path}: {issue.message}", "openclaw doctor --fix"
            )
    for change in plan.changes:
        yield Finding("config", facts.config, difference(change), cures.setup)
    if plan.wishes.way == "front" and facts.config_mode & 0o077:
        problem = (
            "others can read the name of the identity header, with which they can be anybody at OpenClaw's own port"
        )
        yield Finding("config", facts.config, problem, f"chmod 600 {shlex.quote(facts.config)}")
    for place in facts.token_variables:
        yield Finding(
            "token_variable",
            place,
            f"{TOKEN_VARIABLE} is set here, with which OpenClaw does not start in trusted-proxy mode",
            f"remove it there, and from the environment of OpenClaw's service: unset {TOKEN_VARIABLE}",
        )
    for key, old, new in _differing((), plan.old_tables, plan.tables):
        yield Finding("proxy_file", facts.proxy_file, _disagreement(key, old, new), cures.setup)


def _disagreement(key: str, old: Json, new: Json) -> str:
    if key == "identity.user_header":  # neither name is for other eyes
        return "identity.user_header is not the name that OpenClaw has as gateway.auth.trustedProxy.userHeader"
    is_now = "missing" if old is ABSENT else json.dumps(old)
    return f"{key} is {is_now}, and has to be {json.dumps(new)} to agree with OpenClaw"


def _differing(path: tuple[str, ...], old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key, value in new.items():
        before = old.get(key, ABSENT)
        if isinstance(value, dict) and isinstance(before, dict):
            yield from _differing((*path, key), before, value)
        elif before != value:
            yield dotted((*path, key)), before, value


def _launcher(plan: Plan, facts: Facts, cures: _Cures) -> Iterator[Finding]:
    faults = tuple(launcher_faults(facts.launcher, facts.uid))
    for problem, cure in faults:
        yield Finding("launcher", facts.launcher.path, problem, cure)
    if not faults and facts.launcher.text != plan.launcher_text:
        yield Finding("launcher", facts.launcher.path, "the launcher does not start this gatepass", cures.setup)


def _broker(plan: Plan, facts: Facts, cures: _Cures) -> Iterator[Finding]:
    where = plan.wishes.broker_socket or "the broker"
    if isinstance(facts.broker, GatepassError):
        yield _unasked(facts.broker, where, cures)
        return
    if facts.is_locked:
        problem = "an administrator has locked gatepass: nobody logs in"
        yield Finding("broker", where, problem, f"find out why first, then: {cures.unlock}")
    grant = facts.broker.grant
    if grant is None:
        yield Finding("broker", where, "no rule of the broker matches you, so it gives you no token", cures.grant)
        return
    if grant.identity != plan.wishes.user:
        problem = f"the broker calls you '{grant.identity}', and OpenClaw expects '{plan.wishes.user}'"
        yield Finding("broker", where, problem, cures.identity.format(grant.identity))
    identity = plan.tables["identity"]
    audience = identity.get("audience", "openclaw")
    if audience not in grant.audiences:
        problem = f"the broker grants you no tokens for '{audience}'"
        yield Finding("broker", where, problem, cures.audience.format(audience))


def _unasked(error: GatepassError, where: str, cures: _Cures) -> Finding:
    """A broker that does not let this user ask is running: what helps is what it takes to be let."""
    if error.code is ErrorCode.PERMISSION:
        problem, _, cure = error.message.partition(": ")
        return Finding("broker", where, problem, cure or f"ask as somebody who may, or allow it: {cures.grant}")
    return Finding("broker", where, error.message, cures.broker)


def _proxy_port(wishes: Wishes, facts: Facts, cures: _Cures) -> Iterator[Finding]:
    listener, where, start = facts.at_proxy_port, f"port {wishes.proxy_port}", cures.proxy
    if listener is None:
        yield Finding("proxy_port", where, "the gatepass proxy is not running: nobody listens here", start)
    elif listener.program is not None and "openclaw" in listener.program:
        port = wishes.openclaw_port
        yield Finding(
            "proxy_port",
            where,
            f"the port is taken: OpenClaw itself listens here, where the proxy has to (it belongs on {port})",
            f"openclaw gateway stop, then: openclaw gateway run --port {port} (a service: openclaw gateway install "
            f"--force --port {port}), and: {start}",
        )
    elif listener.uid not in facts.proxy_uids:
        yield Finding(
            "proxy_port",
            where,
            f"the port is taken by a program of uid {listener.uid}, which gets what OpenClaw's commands send",
            f"stop it and start the proxy ({start}); if it is the proxy, say so: --proxy-user {listener.uid}",
        )


def _openclaw_port(wishes: Wishes, facts: Facts, cures: _Cures) -> Iterator[Finding]:
    listener, where, start = facts.at_openclaw_port, f"port {wishes.openclaw_port}", cures.openclaw
    if listener is None:
        yield Finding("openclaw_port", where, "OpenClaw is not running: nobody listens here", start)
    elif listener.uid != facts.uid:
        yield Finding(
            "openclaw_port",
            where,
            f"the port is taken by a program of uid {listener.uid}; OpenClaw is yours, uid {facts.uid}",
            f"stop that program, then: {start}; or take another port: {SETUP} --second-port PORT",
        )
    elif listener.program is not None and "openclaw" not in listener.program:
        yield Finding(
            "openclaw_port",
            where,
            f"the port is taken by '{listener.program[:60]}'",
            f"stop it, then: {start}; or take another port: {SETUP} --second-port PORT",
        )


def _answer(wishes: Wishes, facts: Facts, cures: _Cures) -> Iterator[Finding]:
    """Both listen, and yet what commands dial may not be the proxy."""
    problems = {
        "other": "what commands send here does not reach the gatepass proxy: somebody else answers",
        "refused": "what commands send here is refused: the redirect or the proxy does not run",
        "silent": "the gatepass proxy does not answer here",
    }
    if (problem := problems.get(facts.answering)) is not None:
        yield Finding("answer", f"port {wishes.port}", problem, cures.proxy)
