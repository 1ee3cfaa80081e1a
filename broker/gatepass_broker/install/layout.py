"""Where everything lies on a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from gatepass.paths import SYSTEM_SOCKET

BROKER_ACCOUNT: Final = "gatepass-broker"
GATEWAY_ACCOUNT: Final = "gatepass-gateway"
CALLERS_GROUP: Final = "gatepass"

BROKER_SERVICE: Final = "gatepass-broker.service"
ADMIN_SOCKET_UNIT: Final = "gatepass-broker-admin.socket"
BROKER_SOCKETS: Final = ("gatepass-broker.socket", "gatepass-broker-follow.socket", ADMIN_SOCKET_UNIT)
GATEWAY_SERVICE: Final = "gatepass-gateway.service"
GATEWAY_SOCKET: Final = "gatepass-gateway.socket"
REDIRECT_SERVICE: Final = "gatepass-redirect.service"

LINKED: Final = ("gatepass", "gatepass-broker", "gatepass-gateway")
"""Commands for people."""

BROKER_SOCKET: Final = SYSTEM_SOCKET
FOLLOW_SOCKET: Final = "/run/gatepass/follow.sock"
"""Of the socket units."""


class Layout(NamedTuple):
    """The places, below `root`: `/`, except in tests."""

    root: Path = Path("/")

    @property
    def home(self) -> Path:
        """Code and manifest."""
        return self.root / "opt/gatepass"

    @property
    def releases(self) -> Path:
        """One virtual environment for each release."""
        return self.home / "releases"

    @property
    def current(self) -> Path:
        """A link to the release that is in use."""
        return self.home / "current"

    @property
    def manifest(self) -> Path:
        """What install has made."""
        return self.home / "manifest.json"

    @property
    def links(self) -> Path:
        """Where people's shells find commands."""
        return self.root / "usr/local/bin"

    @property
    def units(self) -> Path:
        """Units that come with software which no package manager knows."""
        return self.root / "usr/local/lib/systemd/system"

    @property
    def sysusers(self) -> Path:
        """The accounts."""
        return self.root / "usr/local/lib/sysusers.d/gatepass.conf"

    @property
    def config(self) -> Path:
        """Configuration of broker and proxy."""
        return self.root / "etc/gatepass"

    @property
    def broker_config(self) -> Path:
        """The broker's."""
        return self.config / "broker.toml"

    @property
    def broker_rules(self) -> Path:
        """Further rules of the broker's, a file each."""
        return self.config / "conf.d"

    @property
    def gateway_config(self) -> Path:
        """The proxy's."""
        return self.config / "gateway.toml"

    @property
    def gateway_config_before(self) -> Path:
        """The proxy's as an operator had it, before it was written anew."""
        return self.config / "gateway.toml.before"

    @property
    def runtime(self) -> Path:
        """The sockets of the broker, and its public keys."""
        return self.root / "run/gatepass"

    @property
    def journal(self) -> Path:
        """The broker's state directory."""
        return self.root / "var/lib/gatepass"

    def command(self, name: str) -> Path:
        """A command of the release in use."""
        return self.current / "bin" / name

    def drop_in(self, unit: str, name: str, manager: str = "system") -> Path:
        """A drop-in of an administrator, for the manager `system` or, of every person, `user`."""
        return self.root / "etc/systemd" / manager / f"{unit}.d" / f"{name}.conf"
