"""Changes and steps as a person reads them. Never a secret, and never the header that nobody shall guess."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Final, NamedTuple

from gatepass.openclaw_setup.desired import ABSENT, AUTH, PASSWORD, TRUSTED_PROXY, Change
from gatepass.openclaw_setup.json5 import Json
from gatepass.openclaw_setup.wishes import ADMIN_SCOPE, Wishes, is_unguessable

_SECRETS: Final = ((*AUTH, "token"), (*AUTH, "password"))


class Step(NamedTuple):
    """A command for a person to run, and what to know about it."""

    command: str
    note: str


def dotted(path: tuple[str, ...]) -> str:
    """Return a key path as `openclaw config get` takes it."""
    return "".join(f".{key}" if key.replace("_", "").isalnum() else f"[{json.dumps(key)}]" for key in path).lstrip(".")


def shown(path: tuple[str, ...], value: Json) -> str:
    """Return a value in one line."""
    if path in _SECRETS and value != PASSWORD:
        return "(a secret)"
    if path == (*TRUSTED_PROXY, "userHeader") and is_unguessable(str(value)):
        return "(an unguessable name)"
    return json.dumps(value, ensure_ascii=False)


def change_lines(change: Change) -> Iterator[str]:
    """Yield the lines of one change: what was, what will be, and why."""
    name = dotted(change.path)
    if change.old is not ABSENT:
        yield f"  - {name}: {shown(change.path, change.old)}"
    if change.new is not ABSENT:
        yield f"  + {name}: {shown(change.path, change.new)}"
    yield f"      {change.reason}"


def steps(wishes: Wishes, directory: str, proxy_file: str) -> tuple[Step, ...]:
    """Return what to run, in order. `directory` is where gatepass's commands are."""
    proxy = _command(f"{directory}/gatepass-gateway", "--config", proxy_file)
    return (
        Step(_broker(wishes, directory), "unless a broker is running already"),
        *(_front(wishes, proxy) if wishes.way == "front" else _redirect(wishes, proxy)),
        Step("gatepass openclaw check", "whether all is well"),
    )


def _front(wishes: Wishes, proxy: str) -> Iterator[Step]:
    port = wishes.openclaw_port
    yield Step("openclaw gateway stop", f"OpenClaw leaves port {wishes.port}, which the proxy takes")
    yield Step(proxy, "the proxy")
    yield Step(f"openclaw gateway run --port {port}", f"as a service: openclaw gateway install --force --port {port}")


def _redirect(wishes: Wishes, proxy: str) -> Iterator[Step]:
    yield Step("openclaw gateway restart", f"it keeps port {wishes.port}")
    yield Step(proxy, f"root has to redirect to port {wishes.proxy_port} what local programs send to {wishes.port}")


def _broker(wishes: Wishes, directory: str) -> str:
    scopes = () if ADMIN_SCOPE in wishes.scopes else wishes.scopes  # the broker's own default is every scope
    options = [word for scope in scopes for word in ("--scope", scope)]
    if wishes.broker_socket is not None:
        options += ["--socket", wishes.broker_socket]
    return _command(f"{directory}/gatepass-broker", "--loopback-user", wishes.user, *options)


def _command(*words: str) -> str:
    return " ".join(map(shlex.quote, words))
