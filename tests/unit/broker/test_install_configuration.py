"""The two configuration files that install writes, and what it takes from a hostile account for them: nothing."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest

from gatepass.daemon.addresses import REDIRECTED_TO
from gatepass.daemon.toml_tables import parse_tables
from gatepass.errors import ConfigurationError
from gatepass.messages import Binding
from gatepass_broker.install.configuration import (
    FromSetup,
    broker_text,
    check_broker_text,
    check_openclaw_port,
    from_setup,
    gateway_tables,
    gateway_text,
    read_tables,
)
from gatepass_broker.install.request import Request, ReverseProxy
from gatepass_broker.operator_scopes import OPERATOR_SCOPES
from gatepass_broker.rule_tables import rules_of
from gatepass_broker.schema import File
from gatepass_gateway.config import resolve as resolve_gateway
from gatepass_gateway.schema import File as GatewayFile

USER = "derek@example.com"
REQUEST = Request(loopback_user=USER, openclaw_user="root")
CHOSEN = FromSetup(18_789, "x-gatepass-user-" + "0" * 32, ("operator.read",), {})

WRITTEN = """\
[listen]
port = 789
[upstream]
port = 18789
user = 1000
[identity]
user_header = "x-user"
[identity.users]
"derek@example.com" = ["operator.read"]
"mallory@example.com" = ["operator.admin"]
[keys]
jwks_file = "/home/mallory/keys.json"
"""


def test_the_broker_takes_its_configuration_and_grants_every_scope_by_name() -> None:
    file = parse_tables(broker_text(REQUEST).encode(), File)
    assert file.broker.loopback_user == USER
    (rule,) = file.rule
    assert rule.user == "root"
    assert rule.scopes == OPERATOR_SCOPES
    assert rule.audiences == ("openclaw",)


def test_the_rule_that_is_shown_as_an_example_is_one_and_comes_first_when_it_counts() -> None:
    request = Request(loopback_user=USER, openclaw_user="root", openclaw_unit="claw.service")
    text = broker_text(request)
    start = text.index("# [[rule]]")
    end = text.index("\n\n", start)
    example = re.sub("^# ", "", text[start:end], flags=re.MULTILINE)
    file = parse_tables((text[:start] + example + text[end:]).encode(), File)
    first, second = rules_of(file.rule, file.broker)
    assert [entry.key for entry in first.selector] == ["user", "unit"]
    assert first.selector[1].wanted == "claw.service"
    assert (first.grant.binding, first.grant.per_minute) == (Binding.UNIT, 60)
    assert (second.grant.rule, second.grant.reconnect) == ("local programs", 8 * 3_600)


def test_several_accounts_stand_in_one_rule() -> None:
    request = Request(loopback_user=USER, openclaw_user="a", users=("b", "a", "c"))
    (rule,) = parse_tables(broker_text(request).encode(), File).rule
    assert rule.user == ("a", "b", "c")


@pytest.mark.parametrize("name", ['"quoted"', "back\\slash", "new\nline", "x' # y", "\x7f"])
def test_a_name_cannot_break_out_of_its_place(name: str) -> None:
    text = broker_text(Request(loopback_user=name, users=(name,)))
    tables = tomllib.loads(text)
    assert tables["broker"]["loopback_user"] == name
    assert tables["rule"][0]["user"] == name


def test_an_identity_that_no_header_can_carry_is_refused_beforehand() -> None:
    check_broker_text(REQUEST)
    with pytest.raises(ConfigurationError, match=r"broker\.loopback_user"):
        check_broker_text(Request(loopback_user="dérek", users=("root",)))


def test_the_proxy_takes_its_configuration() -> None:
    tables = gateway_tables({}, CHOSEN, Request(loopback_user=USER, openclaw_user="x"), 1000, REDIRECTED_TO)
    settings = resolve_gateway(parse_tables(gateway_text(None, tables, {}), GatewayFile), source="")
    assert settings.listen == tuple((address, 789) for address in REDIRECTED_TO)
    assert settings.upstream.address == ("127.0.0.1", 18_789)
    assert settings.broker_socket == "/run/gatepass/follow.sock"
    assert dict(settings.policy.users) == {USER: frozenset({"operator.read"})}
    assert tables["redirect"] == {"proxy_user": "gatepass-gateway"}


def test_the_proxys_file_names_the_command_that_keeps_it_and_not_the_one_that_keeps_a_persons() -> None:
    text = gateway_text(None, gateway_tables({}, CHOSEN, REQUEST, 1000, REDIRECTED_TO), {}).decode()
    assert "gatepass-broker install" in text
    assert "gatepass openclaw setup" not in text


def test_what_an_operator_has_added_stays_and_what_setup_owns_is_refreshed() -> None:
    existing: dict[str, Any] = {
        "listen": {"port": 1},
        "upstream": {"port": 2, "address": "127.0.0.2"},
        "identity": {"user_header": "old", "users": {"ci@example.com": ["operator.read"]}, "audience": "mine"},
        "limits": {"waiting": 9},
        "redirect": {"allow_from": ["192.0.2.1"]},
        "keys": {"jwks_file": "/srv/keys.json"},
    }
    request = Request(loopback_user=USER, reverse_proxies=(ReverseProxy("www-data", "nginx.service"),), port=790)
    tables = gateway_tables(existing, CHOSEN, request, 1000, ("127.0.0.1",))
    assert tables["listen"] == {"port": 790, "addresses": ["127.0.0.1"]}
    assert tables["upstream"]["address"] == "127.0.0.2"
    assert tables["upstream"]["port"] == CHOSEN.openclaw_port
    assert tables["identity"]["users"] == {"ci@example.com": ["operator.read"], USER: ["operator.read"]}
    assert tables["identity"]["audience"] == "mine"
    assert tables["limits"] == {"waiting": 9}
    assert tables["redirect"] == {"proxy_user": "gatepass-gateway", "allow_from": ["192.0.2.1"]}
    assert tables["keys"] == {"jwks_file": "/srv/keys.json"}
    assert tables["reverse_proxy"] == [{"user": "www-data", "unit": "nginx.service"}]


@pytest.mark.parametrize(("said", "is_left"), [(None, True), ((), False)], ids=["nothing said", "none any more"])
def test_a_reverse_proxy_that_was_named_by_hand_stays_unless_there_is_said_to_be_none(
    said: tuple[ReverseProxy, ...] | None, is_left: bool
) -> None:
    request = Request(loopback_user=USER, reverse_proxies=said)
    tables = gateway_tables({"reverse_proxy": [{"user": "www-data"}]}, CHOSEN, request, 1000, REDIRECTED_TO)
    assert ("reverse_proxy" in tables) is is_left


def test_a_file_that_says_the_same_keeps_every_byte() -> None:
    first = gateway_text(None, gateway_tables({}, CHOSEN, REQUEST, 1000, REDIRECTED_TO), {})
    edited = b"# my remark\n" + first
    read = read_tables(edited, "")
    assert gateway_text(edited, gateway_tables(read, CHOSEN, REQUEST, 1000, REDIRECTED_TO), read) == edited


def test_only_what_is_openclaws_to_choose_is_taken_from_its_account() -> None:
    chosen = from_setup(WRITTEN, USER)
    assert chosen == FromSetup(18_789, "x-user", ("operator.read",), {})
    tables = gateway_tables({}, chosen, REQUEST, 1000, REDIRECTED_TO)
    assert "mallory@example.com" not in tables["identity"]["users"]
    assert "jwks_file" not in tables["keys"]


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        "",
        WRITTEN.replace("port = 18789", 'port = "18789"'),
        WRITTEN.replace('"derek@', '"other@'),
        WRITTEN.replace('user_header = "x-user"', "user_header = 1"),
        "x = " + "[" * 5_000,
    ],
)
def test_what_openclaws_account_wrote_is_refused_if_it_has_another_form(text: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be used"):
        from_setup(text, USER)


@pytest.mark.parametrize(
    ("port", "uid", "listening", "reason"),
    [
        (789, 1000, (), "the port of the proxy"),
        (22, 1000, (0,), "privileged port"),
        (5432, 1000, (105,), "uid 105 listens on port 5432"),
        (5432, 1000, (1000, 105), "uid 105 listens on port 5432"),
        (18_789, 1000, (0,), "uid 0 listens"),
    ],
)
def test_openclaws_account_cannot_have_somebody_elses_port_redirected(
    port: int, uid: int, listening: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        check_openclaw_port(port, REQUEST, uid, listening)


@pytest.mark.parametrize("listening", [(), (1000,)])
def test_openclaws_own_port_is_taken(listening: tuple[int, ...]) -> None:
    check_openclaw_port(18_789, REQUEST, 1000, listening)
