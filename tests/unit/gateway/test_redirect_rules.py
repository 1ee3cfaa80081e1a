"""The text of the rules: what the kernel makes of it is in `attacks/redirect`."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path

import pytest

from gatepass_gateway.redirect.rules import GUARD, HELD, MARK, RedirectSettings, both_tables, guard_table, no_guard

SETTINGS = RedirectSettings(gateway_port=18_789, proxy_port=789, proxy_uid=997)


def table(text: str, name: str) -> str:
    """Return what stands between the braces of a table."""
    return text.partition(f"table inet {name} {{")[2].partition("\n}\n")[0]


def test_no_rule_passes_what_has_no_known_owner() -> None:
    """`skuid != x` is no match for a packet without a socket, and what comes after it would hold."""
    assert "skuid !=" not in both_tables(SETTINGS)
    for chain in re.findall(r"chain \w+ \{(.*?)\n\t\}", both_tables(SETTINGS), re.DOTALL):
        rules = chain.strip().splitlines()
        if any("skuid" in rule for rule in rules):
            assert re.search(r"(redirect to :789|reject with tcp reset|drop)$", rules[-1]), rules


def test_the_guard_filters_as_the_held_table_does_and_has_no_redirect() -> None:
    held, guard = (table(both_tables(SETTINGS), name) for name in (HELD, GUARD))
    assert held.endswith(guard)
    assert "type nat" in held
    assert "type nat" not in guard
    assert "owner" not in guard
    assert guard_table(SETTINGS) in both_tables(SETTINGS)


def test_each_table_replaces_what_has_its_name() -> None:
    for name in (HELD, GUARD):
        lines = both_tables(SETTINGS).splitlines()
        start = lines.index(f"add table inet {name}")
        assert lines[start + 1] == f"delete table inet {name}"
        assert lines[start + 2].startswith(f"table inet {name} {{")
    assert no_guard() == f"add table inet {GUARD}\ndelete table inet {GUARD}\n"


@pytest.mark.parametrize(
    ("networks", "rules"),
    [
        ([], []),
        (["192.0.2.1/32"], ["ip saddr { 192.0.2.1/32 } return"]),
        (["2001:db8::/32"], ["ip6 saddr { 2001:db8::/32 } return"]),
        (
            ["192.0.2.0/24", "2001:db8::1/128", "198.51.100.7/32"],
            ["ip saddr { 192.0.2.0/24, 198.51.100.7/32 } return", "ip6 saddr { 2001:db8::1/128 } return"],
        ),
    ],
)
def test_only_networks_that_are_named_may_dial_from_elsewhere(networks: list[str], rules: list[str]) -> None:
    settings = SETTINGS._replace(allow_from=tuple(map(ip_network, networks)))
    assert re.findall(r"^\t\t(ip6? saddr .*)$", guard_table(settings), re.MULTILINE) == rules


def test_every_number_is_the_configured_one() -> None:
    other = both_tables(RedirectSettings(gateway_port=1, proxy_port=2, proxy_uid=3))
    assert not set(re.findall(r"\d+", other)) & {"18789", "789", "997"}
    assert other == both_tables(SETTINGS).replace("18789", "1").replace("789", "2").replace("997", "3")


def test_the_mark_is_that_of_the_socket_unit() -> None:
    unit = Path(__file__).parents[3] / "systemd" / "gatepass-gateway.socket"
    assert f"\nMark={MARK}\n" in unit.read_text()
    assert f"meta mark {MARK} return" in guard_table(SETTINGS)
