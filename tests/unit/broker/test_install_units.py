"""The units that come with gatepass, where they go, and whether they fit what install writes beside them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from gatepass.daemon.addresses import REDIRECTED_TO
from gatepass.errors import ConfigurationError
from gatepass.paths import ADMIN_SOCKET
from gatepass_broker.install.configuration import ADMIN_TABLE, broker_text, has_socket
from gatepass_broker.install.layout import ADMIN_SOCKET_UNIT, BROKER_SOCKETS, GATEWAY_SOCKET, Layout
from gatepass_broker.install.request import Request
from gatepass_broker.install.units import accounts_file, openclaw_drop_ins, port_drop_in, shipped, unit_files

LAYOUT = Layout()


def directives(unit: str) -> dict[str, str]:
    """The directives of a unit; of one that is repeated, the last."""
    lines = shipped(unit).decode().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_a_broker_alone_has_its_own_units_and_no_other() -> None:
    names = {file.path.name for file in unit_files(LAYOUT, Request(users=("derek",)))}
    assert names == {*BROKER_SOCKETS, "gatepass-broker.service"}


def test_with_openclaw_there_are_proxy_and_redirect_too() -> None:
    files = unit_files(LAYOUT, Request(openclaw_user="derek"))
    assert len(files) == 7
    assert {file.path.parent for file in files} == {Path("/usr/local/lib/systemd/system")}
    assert accounts_file(LAYOUT).path == Path("/usr/local/lib/sysusers.d/gatepass.conf")


def test_services_run_the_release_in_use_with_the_configuration_that_install_writes() -> None:
    for name, config in (("broker", "broker"), ("gateway", "gateway"), ("redirect", "gateway")):
        started = directives(f"gatepass-{name}.service")["ExecStart"]
        assert started == f"/opt/gatepass/current/bin/gatepass-{name} --config /etc/gatepass/{config}.toml"


def test_the_brokers_configuration_agrees_with_its_socket_units() -> None:
    sockets = tomllib.loads(broker_text(Request(loopback_user="d", users=("d",))))["socket"]
    for name, table in zip(BROKER_SOCKETS, sockets, strict=True):
        section = directives(name)
        found = (section["ListenStream"], section["SocketMode"], section["SocketUser"], section["SocketGroup"])
        assert found == (table["path"], table["mode"], table["owner"], table["group"])


def test_only_a_configuration_that_names_the_administrators_socket_has_a_use_for_its_unit() -> None:
    """One from before there was such a socket does not name it, and the broker refuses what its file does not name."""
    fresh = broker_text(Request(loopback_user="d", users=("d",))).encode()
    assert has_socket(fresh, "broker.toml", ADMIN_SOCKET)
    assert not has_socket(fresh.replace(ADMIN_TABLE.encode(), b""), "broker.toml", ADMIN_SOCKET)
    for other in (
        b"",
        b"socket = 1",
        b"[[socket]]\npath = 1",
        b"socket = [1]",
        b"[socket]\npath = '/run/gatepass/admin.sock'",
    ):
        assert not has_socket(other, "broker.toml", ADMIN_SOCKET)
    with pytest.raises(ConfigurationError, match="not TOML"):
        has_socket(b"[", "broker.toml", ADMIN_SOCKET)


def test_the_administrators_socket_is_roots_and_asked_for_by_nothing_but_its_own_enablement() -> None:
    assert directives(ADMIN_SOCKET_UNIT)["SocketMode"] == "0600"
    assert directives(ADMIN_SOCKET_UNIT)["RequiredBy"] == "gatepass-broker.service"
    service = shipped("gatepass-broker.service").decode().splitlines()
    assert not [line for line in service if ADMIN_SOCKET_UNIT in line and not line.startswith("#")]


def test_the_usual_port_needs_no_drop_in() -> None:
    listened = shipped(GATEWAY_SOCKET).decode()
    for address in ("127.0.0.1", "127.0.0.2", "[::1]"):
        assert f"ListenStream={address}:789\n" in listened
    assert port_drop_in(LAYOUT, Request(), REDIRECTED_TO) == ()


def test_the_port_is_there_where_ipv6_was_switched_off_later() -> None:
    """Without `FreeBind=` no address can be listened on that the machine does not have, and the unit fails."""
    assert directives(GATEWAY_SOCKET)["FreeBind"] == "yes"


@pytest.mark.parametrize(
    ("port", "addresses", "listened"),
    [
        (790, REDIRECTED_TO, ["127.0.0.1:790", "127.0.0.2:790", "[::1]:790"]),
        (None, ("127.0.0.1", "127.0.0.2"), ["127.0.0.1:789", "127.0.0.2:789"]),
    ],
)
def test_another_port_or_a_machine_without_ipv6_has_a_drop_in(
    port: int | None, addresses: tuple[str, ...], listened: list[str]
) -> None:
    ((path, content),) = port_drop_in(LAYOUT, Request(port=port), addresses)
    assert path == Path("/etc/systemd/system/gatepass-gateway.socket.d/port.conf")
    assert content.decode().splitlines() == ["[Socket]", "ListenStream=", *(f"ListenStream={one}" for one in listened)]


def test_a_system_unit_of_openclaws_is_tied_to_the_redirect_both_ways() -> None:
    bound, back = openclaw_drop_ins(LAYOUT, "claw.service", "system")
    assert bound.path == Path("/etc/systemd/system/claw.service.d/gatepass.conf")
    assert b"BindsTo=gatepass-redirect.service" in bound.content
    assert back.path == Path("/etc/systemd/system/gatepass-redirect.service.d/openclaw.conf")
    assert back.content == b"[Unit]\nWants=claw.service\n"


def test_a_persons_own_unit_cannot_depend_on_the_systems_and_looks_itself() -> None:
    ((path, content),) = openclaw_drop_ins(LAYOUT, "claw.service", "person")
    assert path == Path("/etc/systemd/user/claw.service.d/gatepass.conf")
    assert b"ExecStartPre=" in content
