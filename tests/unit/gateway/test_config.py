"""The configuration file: each fault is named with its place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gatepass.errors import ConfigurationError
from gatepass_gateway.clients import ReverseProxy
from gatepass_gateway.config import load
from gatepass_gateway.trusted_proxy import IdentityPolicy
from support.gateway import gateway_settings, gateway_tables, to_toml
from support.upstream import USER, USER_HEADER


def write(directory: Path, tables: Mapping[str, Any] | str) -> Path:
    directory.chmod(0o755)
    path = directory / "gateway.toml"
    path.write_text(tables if isinstance(tables, str) else to_toml(tables))
    path.chmod(0o600)
    return path


def test_a_short_file_is_enough(tmp_path: Path) -> None:
    text = (
        f'[listen]\nport=1\n[upstream]\nport=2\n[identity]\nuser_header="X-User"\nusers={{"{USER}"=["operator.read"]}}'
    )
    settings = load(write(tmp_path, text))

    assert settings.listen == (("127.0.0.1", 1),)
    assert settings.upstream == (("127.0.0.1", 2), os.geteuid(), "127.0.0.1", "127.7.7.7")
    assert settings.policy == IdentityPolicy(b"x-user", b"x-openclaw-scopes", {USER: frozenset({"operator.read"})})
    assert (settings.reverse_proxies, settings.redirected_port) == ((), None)
    assert (settings.audience, settings.client_address) == ("openclaw", b"192.0.0.8")
    assert settings.jwks_file is None
    assert settings.limits.waiting < 32
    assert settings.deadlines == (10, 3, 60, 20)


def test_a_full_file(tmp_path: Path) -> None:
    settings = load(
        write(
            tmp_path,
            gateway_tables(
                2,
                port=1,
                listen={"addresses": ["127.0.0.1", "::1"]},
                upstream={"user": "nobody"},
                identity={
                    "scopes_header": "",
                    "extra_headers": ["X-Mine"],
                    "fixed_headers": {"X-Required": "yes"},
                    "audience": "other",
                },
                keys={"jwks_file": "/x/jwks.json", "issuer": "gatepass:x"},
                device_logins={"users": ["root", 1000]},
                redirect={"proxy_user": 999},
            ),
        )
    )

    assert settings.listen == (("127.0.0.1", 1), ("::1", 1))
    assert settings.upstream.uid == 65534
    assert settings.policy.scopes_header is None
    assert settings.extra_headers == {b"x-mine"}
    assert settings.fixed_headers == ((b"x-required", b"yes"),)
    assert (settings.jwks_file, settings.issuer) == (Path("/x/jwks.json"), "gatepass:x")
    assert settings.device_login_uids == {0, 1000}
    assert settings.redirected_port == 2


def test_reverse_proxies_are_users_with_or_without_a_unit(tmp_path: Path) -> None:
    path = write(tmp_path, gateway_tables(2, port=1))
    with path.open("a") as file:
        file.write('[[reverse_proxy]]\nuser = "nobody"\n[[reverse_proxy]]\nuser = 33\nunit = "php-fpm@8.2.service"\n')
    assert load(path).reverse_proxies == (ReverseProxy(65534), ReverseProxy(33, "php-fpm@8.2.service"))


@pytest.mark.parametrize(
    "unit",
    [
        *("nginx", "nginx.socket", "system.slice", "session-1.scope", "nginx@.service", ".service", ""),
        *("system.slice/nginx.service", "../nginx.service", "nginx*.service", "nginx.service\n", "_nginx.service"),
    ],
)
def test_what_is_no_services_full_name_is_not_a_reverse_proxys_unit(unit: str) -> None:
    with pytest.raises((ConfigurationError, msgspec.ValidationError), match=r"reverse_proxy\[0\]\.unit"):
        gateway_settings(gateway_tables(2, port=1, reverse_proxy=[{"user": 33, "unit": unit}]))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"listen": {"port": 0}}, "listen.port"),
        ({"listen": {"port": 65_536}}, "listen.port"),
        ({"listen": {"port": "1"}}, "listen.port"),
        ({"listen": {"port": True}}, "listen.port"),
        ({"listen": {"addresses": ["localhost"]}}, "listen.addresses"),
        ({"listen": {"addresses": []}}, "upstream.port"),
        ({"listen": {"addresses": ["0.0.0.0"]}}, "listen.addresses"),
        ({"listen": {"addresses": ["::"]}}, "listen.addresses"),
        ({"listen": {"addresses": ["192.168.1.1"]}}, "listen.addresses"),
        ({"listen": {"adresses": ["127.0.0.1"]}}, "listen"),
        ({"upstream": {"port": 1}}, "upstream.port"),
        ({"upstream": {"address": "10.0.0.1"}}, "upstream.address"),
        ({"upstream": {"address": "::1"}}, "upstream.address"),
        ({"upstream": {"identity_source": "127.0.0.1"}}, "upstream.identity_source"),
        ({"upstream": {"identity_source": "127.0.0.1 "}}, "upstream.identity_source"),
        ({"upstream": {"identity_source": "10.0.0.1"}}, "upstream.identity_source"),
        ({"upstream": {"user": "no-such-user"}}, "upstream.user"),
        ({"upstream": {"user": 2**32 - 1}}, "upstream.user"),
        ({"upstream": {"user": -1}}, "upstream.user"),
        ({"identity": {"user_header": ""}}, "identity.user_header"),
        ({"identity": {"user_header": "x user"}}, "identity.user_header"),
        ({"identity": {"user_header": "x_user"}}, "identity.user_header"),
        ({"identity": {"user_header": "x-user."}}, "identity.user_header"),
        ({"identity": {"user_header": "x-usér"}}, "identity.user_header"),
        ({"identity": {"user_header": "Authorization"}}, "identity.user_header"),
        ({"identity": {"user_header": "x-openclaw-scopes"}}, "identity.user_header"),
        ({"identity": {"user_header": "x-forwarded-for"}}, "identity.user_header"),
        ({"identity": {"scopes_header": "connection"}}, "identity.scopes_header"),
        ({"identity": {"users": {"a\u0301": []}}}, "identity.users"),
        ({"identity": {"users": {" derek": []}}}, "identity.users"),
        ({"identity": {"users": {USER: ["a,b"]}}}, "identity.users"),
        ({"identity": {"users": {USER: ["a b"]}}}, "identity.users"),
        ({"identity": {"users": {USER: [""]}}}, "identity.users"),
        ({"identity": {"client_address": "nowhere"}}, "identity.client_address"),
        ({"identity": {"extra_headers": ["content-length"]}}, "identity.extra_headers"),
        ({"identity": {"extra_headers": ["X-OpenClaw-Scopes"]}}, "identity.extra_headers"),
        ({"identity": {"extra_headers": [USER_HEADER]}}, "identity.extra_headers"),
        ({"identity": {"extra_headers": ["x-forwarded-host"]}}, "identity.extra_headers"),
        ({"identity": {"fixed_headers": {USER_HEADER: "x"}}}, "identity.fixed_headers"),
        ({"identity": {"fixed_headers": {"X-Openclaw-Scopes": "x"}}}, "identity.fixed_headers"),
        ({"identity": {"fixed_headers": {"x-forwarded-for": "1.1.1.1"}}}, "identity.fixed_headers"),
        ({"identity": {"fixed_headers": {"x-a": "b\nc"}}}, "identity.fixed_headers"),
        ({"keys": {"issuer": "gatepass:x"}}, "keys.issuer"),
        ({"keys": {"jwks_file": "/x", "broker_socket": "/y"}}, "keys"),
        ({"device_logins": {"users": ["no-such-user"]}}, "device_logins.users"),
        ({"reverse_proxy": [{"user": "no-such-user"}]}, "reverse_proxy[0].user"),
        ({"reverse_proxy": [{}]}, "reverse_proxy[0]"),
        ({"limits": {"waiting_per_uid": 24}}, "limits.waiting_per_uid"),
        ({"limits": {"head_seconds": 0}}, "limits.head_seconds"),
        ({"limits": {"waitng": 3}}, "limits"),
    ],
)
def test_each_fault_is_named_with_its_place(changes: dict[str, Any], where: str) -> None:
    tables = gateway_tables(2, port=1)
    for name, table in changes.items():
        tables[name] = {**tables.get(name, {}), **table} if isinstance(table, dict) else table

    with pytest.raises(ConfigurationError) as caught:
        _resolve(tables)
    assert caught.value.where.startswith(where), caught.value.message
    assert caught.value.message.startswith(caught.value.where)


def _resolve(tables: Mapping[str, Any]) -> None:
    """As `load` does, without a file: TOML in these tests cannot hold everything."""
    from gatepass.daemon.toml_tables import parse_tables
    from gatepass_gateway.schema import File

    try:
        gateway_settings(tables)
    except msgspec.ValidationError:
        inline = dict(tables)
        proxies = inline.pop("reverse_proxy", [])
        text = to_toml(inline) + "".join(f"[[reverse_proxy]]\n{to_toml(proxy)}" for proxy in proxies)
        parse_tables(text.encode(), File)


@pytest.mark.parametrize("text", ["", "[listen", "listen = 1", "\xff"])
def test_what_is_no_configuration_is_refused_with_the_name_of_the_file(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert str(path) in caught.value.message


def test_a_file_that_others_can_write_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, gateway_tables(2, port=1))
    path.chmod(0o666)
    with pytest.raises(ConfigurationError, match="write"):
        load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigurationError, match="nowhere"):
        load(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        ({"RUNTIME_DIRECTORY": "/run/gatepass-gateway"}, "/run/gatepass-gateway"),
        ({"RUNTIME_DIRECTORY": "/run/one:/run/two"}, "/run/one"),
        ({"XDG_RUNTIME_DIR": "{own}"}, "{own}/gatepass"),
        ({"XDG_RUNTIME_DIR": "{own}/gatepass"}, None),
    ],
)
def test_the_state_is_where_systemd_or_the_person_has_a_place_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], directory: str | None
) -> None:
    (tmp_path / "gatepass").mkdir()
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value.format(own=tmp_path))
    expected = None if directory is None else Path(directory.format(own=tmp_path))

    assert gateway_settings(gateway_tables(2, port=1)).state_dir == expected
    named = gateway_settings(gateway_tables(2, port=1, sessions={"state_dir": "/srv/state"}))
    assert named.state_dir == Path("/srv/state")


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"sessions": {"state_dir": "relative"}}, "sessions.state_dir"),
        ({"keys": {"broker_absence_seconds": -1}}, "keys.broker_absence_seconds"),
        ({"keys": {"broker_absence_seconds": 604_801}}, "keys.broker_absence_seconds"),
        ({"sessions": {"directory": "/srv"}}, "sessions"),
    ],
)
def test_a_fault_in_what_is_kept_is_named_with_its_place(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        _resolve(gateway_tables(2, port=1, **changes))
    assert caught.value.where.startswith(where), caught.value.message
