"""OpenClaw configurations that are not ours to change: each is refused with the place and what to do."""

from __future__ import annotations

from typing import Final, NoReturn

from gatepass.errors import ConfigurationError
from gatepass.openclaw_setup.desired import PROVIDER_PATH, TRUSTED_PROXY, Path
from gatepass.openclaw_setup.json5 import Json, Json5Error, Node, line_and_column, parse
from gatepass.openclaw_setup.wishes import covers_loopback

_OBJECTS: Final[tuple[Path, ...]] = (
    ("gateway",),
    ("gateway", "auth"),
    TRUSTED_PROXY,
    ("gateway", "auth", "identityScopes"),
    ("secrets",),
    ("secrets", "providers"),
    PROVIDER_PATH,
)
"""What lies on the way to the values that we set."""

_READ: Final[tuple[Path, ...]] = (
    ("gateway", "mode"),
    ("gateway", "port"),
    (*TRUSTED_PROXY, "userHeader"),
    (*TRUSTED_PROXY, "requiredHeaders"),
)
"""Values that we must know, and that OpenClaw could take from a variable."""


class Source:
    """A configuration file's name and text."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text

    def refuse(self, node: Node | int, message: str) -> NoReturn:
        """Raise the `ConfigurationError` that says where."""
        position = node if isinstance(node, int) else node.start
        line, column = line_and_column(self.text, position)
        raise ConfigurationError(f"{message}. Nothing was changed", where=f"{self.name}:{line}:{column}")


def read_configuration(name: str, text: str) -> Node:
    """Return the configuration in `text` if it is one that we can read and change. Raise `ConfigurationError`."""
    source, root = Source(name, text), parse_configuration(name, text)
    _refuse_unreadable(source, root)
    _refuse_unsuitable(source, root)
    return root


def parse_configuration(name: str, text: str) -> Node:
    """Return the configuration in `text`, whatever it says. Raise `ConfigurationError` if it is none."""
    source = Source(name, text)
    try:
        root = parse(text)
    except Json5Error as error:
        source.refuse(error.position, f"this is not JSON5: {error}")
    if not isinstance(root.value, dict):
        source.refuse(root, "the whole must be an object, { … }")
    return root


def _refuse_unreadable(source: Source, root: Node) -> None:
    for path in ((), *_OBJECTS):
        node = root.at(*path)
        if node is None:
            continue
        if not isinstance(node.value, dict):
            source.refuse(node, f"{'.'.join(path)} must be an object, {{ … }}")
        if include := node.at("$include"):
            where = f"'{'.'.join(path)}'" if path else "the top"
            source.refuse(
                include,
                f"an $include at {where} brings in what gatepass would have to know and change; write 'gateway' and "
                "'secrets' into this file itself (an $include inside other sections is no obstacle)",
            )
    for path in _READ:
        node = root.at(*path)
        if node is not None and _has_variable(node.value):
            source.refuse(node, f"{'.'.join(path)} comes from a variable; write its value here")


def _refuse_unsuitable(source: Source, root: Node) -> None:
    mode = root.at("gateway", "mode")
    if mode is not None and mode.value != "local":
        source.refuse(mode, "gateway.mode is not 'local': this OpenClaw only dials a gateway elsewhere; run this there")
    tls = root.at("gateway", "tls", "enabled")
    if tls is not None and tls.value is True:
        source.refuse(
            tls,
            "with gateway.tls local commands speak TLS, which the gatepass proxy does not; let a reverse proxy do it",
        )
    provider = root.at(*PROVIDER_PATH, "source")
    if provider is not None and provider.value != "exec":
        source.refuse(provider, "a secret provider of another kind is called 'gatepass'; give it another name")
    _refuse_wide_range(source, root.at("gateway", "trustedProxies"))


def _refuse_wide_range(source: Source, node: Node | None) -> None:
    if node is None or not isinstance(node.value, list):
        return
    for entry in node.value:
        if isinstance(entry, str) and covers_loopback(entry) == "also":
            source.refuse(
                node,
                f"gateway.trustedProxies has {entry}, a range that includes this machine's own programs; name the "
                "addresses of your reverse proxies instead",
            )


def _has_variable(value: Json) -> bool:
    if isinstance(value, list):
        return any(map(_has_variable, value))
    return isinstance(value, str) and "${" in value
