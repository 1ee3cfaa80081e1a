"""What an administrator wants. What was said once is kept, so that an upgrade takes no options."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from gatepass.errors import ConfigurationError

ManagerName = Literal["system", "person"]

DEFAULT_UNIT: Final = "openclaw-gateway.service"
"""Which `openclaw gateway install` writes."""
DEFAULT_PORT: Final = 789
"""Of the proxy. A privileged one: nobody but root can take it. IANA has given it to nobody."""

_UNIT: Final = re.compile(r"[A-Za-z0-9:_.@-]{1,200}\.service")
_REVERSE_PROXY: Final = re.compile(r"([^:/\s]+)(?::([A-Za-z0-9:_.@-]+\.service))?")

Port = Annotated[int, Meta(ge=1, le=65_535)]


class ReverseProxy(Struct, frozen=True, omit_defaults=True):
    """A reverse proxy on this machine."""

    user: str
    unit: str | None = None
    """The unit that its connections come from."""

    def __str__(self) -> str:
        """As on the command line."""
        return f"{self.user}:{self.unit}" if self.unit else self.user


class Request(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is wanted. None and () where nothing was said."""

    loopback_user: str | None = None
    """The identity that local programs get."""
    users: tuple[str, ...] = ()
    """Accounts that may ask for tokens, besides OpenClaw's."""
    openclaw_user: str | None = None
    """The account that runs OpenClaw; without it there is a broker alone."""
    openclaw_unit: str | None = None
    manager: ManagerName | None = None
    """Whose unit OpenClaw is."""
    openclaw: str | None = None
    openclaw_config: str | None = None
    openclaw_state_dir: str | None = None
    reverse_proxies: tuple[ReverseProxy, ...] | None = None
    """() where it was said that there is none; with None a table that an operator has written stays."""
    port: Port | None = None

    @property
    def unit(self) -> str:
        """OpenClaw's unit."""
        return self.openclaw_unit or DEFAULT_UNIT

    @property
    def proxy_port(self) -> int:
        """Where the proxy listens."""
        return self.port or DEFAULT_PORT

    @property
    def proxies(self) -> tuple[ReverseProxy, ...]:
        """The reverse proxies that are named."""
        return self.reverse_proxies or ()

    @property
    def accounts(self) -> tuple[str, ...]:
        """All who may ask for tokens."""
        own = () if self.openclaw_user is None else (self.openclaw_user,)
        return tuple(dict.fromkeys((*own, *self.users)))

    def over(self, earlier: Request) -> Request:
        """Return this request, with what was said earlier where it says nothing."""
        nothing = Request()
        said = {name: value for name, value in msgspec.structs.asdict(self).items() if value != getattr(nothing, name)}
        return msgspec.structs.replace(earlier, **said)

    def as_json(self) -> dict[str, Any]:
        """Return it as the manifest keeps it."""
        kept: dict[str, Any] = msgspec.to_builtins(self)
        return kept


def unit_name(text: str) -> str:
    """Return the full name of a service unit. Raise `ConfigurationError`."""
    name = text if "." in text else f"{text}.service"
    if not _UNIT.fullmatch(name):
        raise ConfigurationError(f"'{text}' is not the name of a service unit", where="--openclaw-unit")
    return name


def reverse_proxy(text: str) -> ReverseProxy:
    """Return what `USER` or `USER:UNIT` says. Raise `ConfigurationError`."""
    found = _REVERSE_PROXY.fullmatch(text)
    if found is None:
        raise ConfigurationError(
            f"'{text}' is not USER or USER:UNIT, such as www-data:nginx.service", where="--reverse-proxy"
        )
    return ReverseProxy(found[1], found[2])
