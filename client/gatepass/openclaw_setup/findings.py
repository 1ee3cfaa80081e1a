"""What `gatepass openclaw check` finds, each with its cure. Facts in, findings out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from gatepass.openclaw_setup.desired import ABSENT, Change
from gatepass.openclaw_setup.facts import TOKEN_VARIABLE, Facts
from gatepass.openclaw_setup.json5 import Json
from gatepass.openclaw_setup.launcher import launcher_faults
from gatepass.openclaw_setup.plan import Plan
from gatepass.openclaw_setup.present import dotted, shown
from gatepass.openclaw_setup.wishes import Wishes

SETUP: Final = "gatepass openclaw setup --write"


class Finding(NamedTuple):
    """Something that keeps OpenClaw's commands from logging in, or that will."""

    code: str
    """Stable: invalid, config, proxy_file, launcher, token_variable, broker, proxy_port or openclaw_port."""
    where: str
    problem: str
    cure: str


def findings(plan: Plan, facts: Facts) -> tuple[Finding, ...]:
    """Return all findings, in the order in which they are best cured."""
    return (
        *_configuration(plan, facts),
        *_launcher(plan, facts),
        *_broker(plan, facts),
        *_proxy_port(plan.wishes, facts),
        *_openclaw_port(plan.wishes, facts),
    )


def difference(change: Change) -> str:
    """Return the sentence that says what is wrong with a value."""
    name = dotted(change.path)
    if change.new is ABSENT:
        return f"{name} is set, and must not be: {change.reason}"
    is_now = "missing" if change.old is ABSENT else shown(change.path, change.old)
    return f"{name} is {is_now}, and has to be {shown(change.path, change.new)}: {change.reason}"


def _configuration(plan: Plan, facts: Facts) -> Iterator[Finding]:
    ours = {dotted(change.path) for change in plan.changes}
    for issue in facts.issues:
        if issue.path not in ours and not issue.path.startswith("secrets.providers.gatepass"):
            yield Finding(
                "invalid", facts.config, f"OpenClaw says: {issue.path}: {issue.message}", "openclaw doctor --fix"
            )
    for change in plan.changes:
        yield Finding("config", facts.config, difference(change), SETUP)
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
        yield Finding("proxy_file", facts.proxy_file, _disagreement(key, old, new), SETUP)


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


def _launcher(plan: Plan, facts: Facts) -> Iterator[Finding]:
    faults = tuple(launcher_faults(facts.launcher, facts.uid))
    for problem, cure in faults:
        yield Finding("launcher", facts.launcher.path, problem, cure)
    if not faults and facts.launcher.text != plan.launcher_text:
        yield Finding("launcher", facts.launcher.path, "the launcher does not start this gatepass", SETUP)


def _broker(plan: Plan, facts: Facts) -> Iterator[Finding]:
    start = f"{facts.commands}/gatepass-broker --loopback-user {plan.wishes.user}"
    where = plan.wishes.broker_socket or "the broker"
    if isinstance(facts.broker, str):
        yield Finding("broker", where, facts.broker, start)
        return
    grant = facts.broker.grant
    if grant is None:
        yield Finding("broker", where, "no rule of the broker matches you, so it gives you no token", start)
        return
    if grant.identity != plan.wishes.user:
        problem = f"the broker calls you '{grant.identity}', and OpenClaw expects '{plan.wishes.user}'"
        yield Finding("broker", where, problem, f"gatepass openclaw setup --write --loopback-user {grant.identity}")
    identity = plan.tables["identity"]
    audience = identity.get("audience", "openclaw")
    if audience not in grant.audiences:
        yield Finding(
            "broker", where, f"the broker grants you no tokens for '{audience}'", f"{start} --audience {audience}"
        )


def _proxy_port(wishes: Wishes, facts: Facts) -> Iterator[Finding]:
    listener, where = facts.at_proxy_port, f"port {wishes.proxy_port}"
    start = f"{facts.commands}/gatepass-gateway --config {facts.proxy_file}"
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


def _openclaw_port(wishes: Wishes, facts: Facts) -> Iterator[Finding]:
    listener, where = facts.at_openclaw_port, f"port {wishes.openclaw_port}"
    start = f"openclaw gateway run --port {wishes.openclaw_port}"
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
