"""Looking at everything that `findings` judges."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Mapping
from pathlib import Path

from gatepass.client import Client
from gatepass.errors import ConfigurationError, GatepassError
from gatepass.openclaw_setup.answering import who_answers
from gatepass.openclaw_setup.carry_out import look_at_launcher
from gatepass.openclaw_setup.executable import OpenClaw
from gatepass.openclaw_setup.facts import TOKEN_VARIABLE, Facts
from gatepass.openclaw_setup.files import read_if_there
from gatepass.openclaw_setup.json5 import parse
from gatepass.openclaw_setup.listeners import listener_on
from gatepass.openclaw_setup.places import Places
from gatepass.openclaw_setup.plan import Plan
from gatepass.replies import Whoami

SYSTEM_ACCOUNT = "gatepass-gateway"
"""Runs the proxy where root has installed it."""


def observe(  # noqa: PLR0913 - each is one thing to look at
    plan: Plan,
    config_text: str,
    places: Places,
    openclaw: OpenClaw,
    *,
    commands: Path,
    proxy_user: str | None,
    timeout: float,
) -> Facts:
    """Return what is the case. Raise `ConfigurationError`."""
    broker, is_locked = _broker(plan.wishes.broker_socket, timeout)
    return Facts(
        config=str(places.config),
        config_mode=places.config.stat().st_mode,
        proxy_file=str(places.proxy_file),
        launcher=look_at_launcher(places.launcher),
        issues=openclaw.issues(),
        token_variables=tuple(token_variables(places, config_text, os.environ)),
        at_proxy_port=listener_on(plan.wishes.proxy_port),
        at_openclaw_port=listener_on(plan.wishes.openclaw_port),
        answering=who_answers(plan.wishes.port, timeout),
        broker=broker,
        is_locked=is_locked,
        uid=os.geteuid(),
        proxy_uids=frozenset(_proxy_uids(proxy_user)),
        commands=str(commands),
    )


def token_variables(places: Places, config_text: str, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the places that set OPENCLAW_GATEWAY_TOKEN (OpenClaw's docs, help/environment)."""
    if environ.get(TOKEN_VARIABLE):
        yield "the environment"
    root = parse(config_text)
    for path in (("env", "vars", TOKEN_VARIABLE), ("env", TOKEN_VARIABLE)):
        if root.at(*path) is not None:
            yield f"{places.config}: {'.'.join(path)}"
    file = places.record.with_name(".env")
    text = read_if_there(file) or ""
    if any(line.strip().removeprefix("export ").startswith(f"{TOKEN_VARIABLE}=") for line in text.splitlines()):
        yield str(file)


def _broker(socket: str | None, timeout: float) -> tuple[Whoami | GatepassError, bool]:
    """Return what the broker says of this user, and whether it is locked."""
    try:
        with Client(socket, timeout) as client:
            return client.whoami(), client.status().locked
    except GatepassError as error:
        return error, False


def _proxy_uids(proxy_user: str | None) -> Iterator[int]:
    yield from (0, os.geteuid())  # root: systemd holds the port for the proxy
    if proxy_user is not None and proxy_user.isdecimal():
        yield int(proxy_user)
        return
    try:
        yield pwd.getpwnam(proxy_user or SYSTEM_ACCOUNT).pw_uid
    except KeyError:
        if proxy_user is not None:
            raise ConfigurationError(f"there is no user '{proxy_user}'", where="--proxy-user") from None
