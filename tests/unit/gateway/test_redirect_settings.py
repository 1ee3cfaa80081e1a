"""`[redirect]` in the proxy's configuration: what is taken, and each fault with its place."""

from __future__ import annotations

import re
import textwrap
import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from gatepass.daemon.toml_tables import check_tables
from gatepass.errors import ConfigurationError
from gatepass_gateway.redirect.cli import main
from gatepass_gateway.redirect.rules import RedirectSettings
from gatepass_gateway.redirect.settings import load, resolve
from gatepass_gateway.schema import NO_REDIRECT, File
from support.gateway import gateway_settings, gateway_tables, to_toml

WITHOUT_IPV6 = ["127.0.0.1", "127.0.0.2"]
ALL = [*WITHOUT_IPV6, "::1"]


def tables(**changes: Any) -> dict[str, Any]:
    redirect = {"proxy_user": 997, **changes.pop("redirect", {})}
    listen = {"addresses": ALL, **changes.pop("listen", {})}
    return gateway_tables(18_789, port=789, listen=listen, redirect=redirect, **changes)


def resolved(redirected_to: list[str] = ALL, **changes: Any) -> RedirectSettings:
    return resolve(check_tables(tables(**changes), File), redirected_to=redirected_to)


def test_a_table_with_nothing_but_the_proxys_user() -> None:
    assert resolved() == RedirectSettings(18_789, 789, 997)


def test_a_user_by_name_and_networks_in_which_others_lie() -> None:
    settings = resolved(
        redirect={
            "proxy_user": "nobody",
            "allow_from": ["192.0.2.7", "2001:db8::/32", "192.0.2.0/24", "198.51.100.1", "2001:db8::1"],
        }
    )
    assert settings.proxy_uid == 65_534
    assert settings.allow_from == tuple(map(ip_network, ("192.0.2.0/24", "198.51.100.1", "2001:db8::/32")))


@pytest.mark.parametrize("missing", ALL)
def test_the_proxy_listens_wherever_the_redirect_leads(missing: str) -> None:
    with pytest.raises(ConfigurationError, match=rf'listen\.addresses: .* add "{re.escape(missing)}"'):
        resolved(listen={"addresses": [address for address in ALL if address != missing]})


def test_without_ipv6_the_proxy_listens_on_no_such_address() -> None:
    assert resolved(WITHOUT_IPV6, listen={"addresses": WITHOUT_IPV6})


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"listen": {"port": 18_789}}, "listen.port"),
        ({"redirect": {"proxy_user": "no-such-user"}}, "redirect.proxy_user"),
        ({"redirect": {"proxy_user": "root"}}, "redirect.proxy_user"),
        ({"redirect": {"proxy_user": 0}}, "redirect.proxy_user"),
        ({"redirect": {"proxy_user": 2**32 - 1}}, "redirect.proxy_user"),
        ({"upstream": {"user": 997}}, "redirect.proxy_user"),
        ({"upstream": {"user": "no-such-user"}}, "upstream.user"),
        ({"redirect": {"allow_from": ["localhost"]}}, "redirect.allow_from"),
        ({"redirect": {"allow_from": ["192.0.2.1/24"]}}, "redirect.allow_from"),
        ({"redirect": {"allow_from": ["192.0.2.1 } accept"]}}, "redirect.allow_from"),
        ({"redirect": {"allow_from": ["fe80::1%eth0"]}}, "redirect.allow_from"),
        ({"redirect": {"allow_from": ["0.0.0.0/0"]}}, "redirect.allow_from"),
        ({"redirect": {"allow_from": ["127.0.0.1"]}}, "redirect.allow_from"),
        ({"redirect": {"allow_from": ["::/0"]}}, "redirect.allow_from"),
        ({"redirect": {"allow": []}}, "redirect"),
    ],
)
def test_each_fault_is_named_with_its_place(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolved(**changes)
    assert caught.value.where.startswith(where), caught.value.message
    assert caught.value.message.startswith(caught.value.where)


def test_without_the_table_nothing_is_redirected() -> None:
    """An empty one is enough, and is not the same."""
    without = tables()
    del without["redirect"]
    with pytest.raises(ConfigurationError, match=r"^redirect: the table \[redirect\] is missing"):
        resolve(check_tables(without, File), redirected_to=ALL)
    empty = check_tables({**without, "redirect": {}}, File)
    assert empty.redirect == NO_REDIRECT
    assert empty.redirect is not NO_REDIRECT


def test_the_proxy_reads_the_same_file() -> None:
    settings = gateway_settings(tables())
    assert settings.listen == tuple((address, 789) for address in ALL)


def test_the_file_is_read_as_the_proxys_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "gateway.toml"
    path.write_text(to_toml(tables()))
    path.chmod(0o600)
    assert load(path) == RedirectSettings(18_789, 789, 997)
    path.chmod(0o666)
    with pytest.raises(ConfigurationError, match="write"):
        load(path)
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml"):
        load(tmp_path / "nowhere.toml")


def test_the_configuration_that_help_shows_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out.partition("with:\n")[2].partition("\n\n")[0]
    example = tomllib.loads(textwrap.dedent(shown))
    example["redirect"]["proxy_user"] = 997  # the account that it names is made by an installation
    merged = tables()
    for name, table in example.items():
        merged[name].update(table)
    settings = resolve(check_tables(merged, File), redirected_to=ALL)
    assert settings == RedirectSettings(18_789, 789, 997)
