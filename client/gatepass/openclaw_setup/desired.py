"""What has to change in OpenClaw's configuration, and why. Values in, a list of changes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from gatepass.openclaw_setup.json5 import Json, Node
from gatepass.openclaw_setup.json5_edit import remove_value, set_value
from gatepass.openclaw_setup.wishes import IDENTITY_SOURCE, PASS_ENV, PROVIDER, SECRET_ID, Wishes

Path = tuple[str, ...]

AUTH: Final[Path] = ("gateway", "auth")
TRUSTED_PROXY: Final[Path] = (*AUTH, "trustedProxy")
PROVIDER_PATH: Final[Path] = ("secrets", "providers", PROVIDER)
PASSWORD: Final = {"source": "exec", "provider": PROVIDER, "id": SECRET_ID}


class Absent(Enum):
    """Stands where there is no value: JSON's null is one."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT


class Change(NamedTuple):
    """One value that has to become another."""

    path: Path
    old: Any
    new: Any
    """`ABSENT` to remove it."""
    reason: str


def changes(root: Node, wishes: Wishes) -> tuple[Change, ...]:
    """Return what has to change, in the order in which a person reads it; nothing if all is as wished."""
    return tuple(
        Change(path, old, new, reason)
        for path, new, reason in _wanted(root, wishes)
        if not same(old := value_at(root, path), new)
    )


def apply(text: str, wanted: Sequence[Change]) -> str:
    """Return `text` with the changes made, and everything else as its author wrote it."""
    for change in wanted:
        text = remove_value(text, change.path) if change.new is ABSENT else set_value(text, change.path, change.new)
    return text


def value_at(root: Node, path: Path) -> Json:
    """Return the value at `path`, or `ABSENT`."""
    node = root.at(*path)
    return ABSENT if node is None else node.value


def same(one: Json, other: Json) -> bool:
    """Whether two values are written alike: for Python 1 is true."""
    return type(one) is type(other) and bool(one == other)


def _wanted(root: Node, wishes: Wishes) -> Iterator[tuple[Path, Any, str]]:
    yield from _gateway(root, wishes)
    yield from _trusted_proxy(root, wishes)
    yield (
        (*AUTH, "identityScopes", wishes.user),
        list(wishes.scopes),
        "without it the identity has no scope at all; each by name, because OpenClaw intersects names",
    )
    yield (*AUTH, "token"), ABSENT, "with a shared token OpenClaw does not start in this mode"
    yield (*AUTH, "password"), PASSWORD, "every openclaw command fetches a fresh token and sends it as its password"
    yield from _provider(root, wishes)


def _gateway(root: Node, wishes: Wishes) -> Iterator[tuple[Path, Any, str]]:
    if value_at(root, ("gateway", "mode")) is ABSENT:
        yield ("gateway", "mode"), "local", "without it OpenClaw does not start a gateway here"
    yield (
        ("gateway", "trustedProxies"),
        [IDENTITY_SOURCE, *wishes.trusted_proxies],
        f"the gatepass proxy sends identities from {IDENTITY_SOURCE}, and nobody on this machine may do so from "
        "127.0.0.1 or ::1, where every local program comes from",
    )
    yield (*AUTH, "mode"), "trusted-proxy", "the only mode in which a login has an identity"


def _trusted_proxy(root: Node, wishes: Wishes) -> Iterator[tuple[Path, Any, str]]:
    yield (*TRUSTED_PROXY, "userHeader"), wishes.user_header, "the header in which the proxy names the user"
    users = value_at(root, (*TRUSTED_PROXY, "allowUsers"))
    listed = users if isinstance(users, list) else []
    if wishes.user not in listed and (listed or wishes.only_user):
        yield (*TRUSTED_PROXY, "allowUsers"), [*listed, wishes.user], "who may come in"
    yield (
        (*TRUSTED_PROXY, "allowLoopback"),
        True,
        f"the proxy is on this machine; only {IDENTITY_SOURCE} is trusted, not every local program",
    )


def _provider(root: Node, wishes: Wishes) -> Iterator[tuple[Path, Any, str]]:
    """Key by key, so that options which a person added to it stay."""
    if value_at(root, PROVIDER_PATH) is ABSENT:
        yield PROVIDER_PATH, _new_provider(wishes), "how OpenClaw asks gatepass for a token"
        return
    passed = value_at(root, (*PROVIDER_PATH, "passEnv"))
    listed = passed if isinstance(passed, list) else []
    directories = value_at(root, (*PROVIDER_PATH, "trustedDirs"))
    needed = _new_provider(wishes)
    needed["passEnv"] = [*listed, *(name for name in PASS_ENV if name not in listed)]
    if isinstance(directories, list) and needed["trustedDirs"][0] in directories:
        needed["trustedDirs"] = directories
    for key, value in needed.items():
        yield (*PROVIDER_PATH, key), value, _PROVIDER_REASONS[key]


def _new_provider(wishes: Wishes) -> dict[str, Any]:
    return {
        "source": "exec",
        "command": wishes.launcher,
        "passEnv": list(PASS_ENV),
        "trustedDirs": [wishes.launcher.rpartition("/")[0] or "/"],
        "jsonOnly": True,
    }


_PROVIDER_REASONS: Final = {
    "source": "OpenClaw runs a command for the secret",
    "command": "the launcher, a file of your own as OpenClaw demands",
    "passEnv": "the way to the broker, and OPENCLAW_GATEWAY_PORT, by which the gateway is known: it gets no token",
    "trustedDirs": "where the launcher lies",
    "jsonOnly": "the answer is JSON",
}
