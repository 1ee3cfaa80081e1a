"""From what is there and what was asked for to the two configurations."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import msgspec
import pytest

from gatepass.errors import ConfigurationError
from gatepass.openclaw_setup.choose import Asked, NoUserError
from gatepass.openclaw_setup.json5 import parse
from gatepass.openclaw_setup.plan import Found, Plan, make_plan
from gatepass.openclaw_setup.wishes import ReverseProxy, covers_loopback
from gatepass_gateway.config import resolve
from gatepass_gateway.schema import File

USER = "derek@example.com"
OPERATOR_SCOPES = ("operator.admin", "operator.read", "operator.sessions.read", "operator.write")
RANDOM = "0123456789abcdef" * 2
FRESH = {"gateway": {"mode": "local", "port": 18789, "auth": {"mode": "token", "token": "shared"}}}


def found(config: dict[str, Any] | str, proxy: str | None = None) -> Found:
    text = config if isinstance(config, str) else json.dumps(config, indent=2)
    return Found(
        "/home/d/openclaw.json",
        text,
        "/home/d/gateway.toml",
        proxy,
        "/home/d/state/gatepass-secret",
        1000,
        "/opt/gatepass/bin/gatepass",
        OPERATOR_SCOPES,
        RANDOM,
    )


def plan(config: dict[str, Any] | str = FRESH, proxy: str | None = None, **asked: Any) -> Plan:
    return make_plan(found(config, proxy), Asked(**{"user": USER, **asked}))


def written(made: Plan) -> dict[str, Any]:
    value: dict[str, Any] = parse(made.config_text).value
    return value


def behind_proxy(**trusted_proxy: Any) -> dict[str, Any]:
    """An OpenClaw that has a reverse proxy already."""
    proxies = trusted_proxy.pop("trustedProxies", ["10.0.0.7"])
    settings = {"userHeader": "x-forwarded-user", "allowUsers": ["remote@example.com"], **trusted_proxy}
    auth = {"mode": "trusted-proxy", "trustedProxy": settings}
    return {"gateway": {"mode": "local", "trustedProxies": proxies, "auth": auth}}


def test_a_fresh_configuration_becomes_what_openclaw_needs_and_no_more() -> None:
    assert written(plan()) == {
        "gateway": {
            "mode": "local",
            "port": 18789,
            "trustedProxies": ["127.7.7.7"],
            "auth": {
                "mode": "trusted-proxy",
                "trustedProxy": {
                    "userHeader": f"x-gatepass-user-{RANDOM}",
                    "allowUsers": [USER],
                    "allowLoopback": True,
                },
                "identityScopes": {USER: list(OPERATOR_SCOPES)},
                "password": {"source": "exec", "provider": "gatepass", "id": "gateway/password"},
            },
        },
        "secrets": {
            "providers": {
                "gatepass": {
                    "source": "exec",
                    "command": "/home/d/state/gatepass-secret",
                    "passEnv": ["HOME", "XDG_RUNTIME_DIR", "OPENCLAW_GATEWAY_PORT"],
                    "trustedDirs": ["/home/d/state"],
                    "jsonOnly": True,
                }
            }
        },
    }


def test_what_was_made_needs_no_change_and_keeps_its_random_name() -> None:
    first = plan()
    again = make_plan(found(first.config_text, first.proxy_text)._replace(random="f" * 32), Asked())
    assert again.changes == ()
    assert (again.config_text, again.proxy_text) == (first.config_text, first.proxy_text)


@pytest.mark.parametrize("way", ["front", "redirect"])
def test_the_proxy_takes_what_was_made_for_it_and_agrees_with_openclaw(way: str) -> None:
    made = plan(behind_proxy(requiredHeaders=["X-Forwarded-Proto", "x-edge"]), way=way, broker_socket="/run/b.sock")
    settings = resolve(msgspec.convert(tomllib.loads(made.proxy_text), File), source="made")
    auth = written(made)["gateway"]["auth"]
    ports = {"front": (18789, 18790), "redirect": (18790, 18789)}[way]
    assert (settings.listen[0][1], settings.upstream.address[1]) == ports
    assert settings.policy.user_header.decode() == auth["trustedProxy"]["userHeader"]
    assert settings.policy.users == {USER: frozenset(auth["identityScopes"][USER])}
    assert [settings.upstream.identity_source] == written(made)["gateway"]["trustedProxies"][:1]
    assert dict(settings.fixed_headers) == {b"x-forwarded-proto": b"http", b"x-edge": b"gatepass"}
    assert settings.broker_socket == "/run/b.sock"
    assert "--socket /run/b.sock" in made.launcher_text


def test_what_a_person_added_to_the_proxys_file_stays() -> None:
    proxy = plan().proxy_text + "\n[limits]\nwaiting = 20 # mine\n\n[device_logins]\nusers = ['derek']\n"
    assert make_plan(found(FRESH, proxy), Asked()).proxy_text == proxy
    changed = tomllib.loads(make_plan(found(FRESH, proxy), Asked(second_port=19000)).proxy_text)
    assert changed["limits"] == {"waiting": 20}
    assert changed["device_logins"] == {"users": ["derek"]}
    assert changed["upstream"]["port"] == 19000


def test_the_reverse_proxy_of_another_machine_stays_with_the_name_that_it_sends() -> None:
    made = plan(behind_proxy(trustedProxies=["10.0.0.7", "127.0.0.1", "::1", "127.0.0.0/8"]))
    gateway = written(made)["gateway"]
    assert gateway["trustedProxies"] == ["127.7.7.7", "10.0.0.7"]
    assert gateway["auth"]["trustedProxy"]["userHeader"] == "x-forwarded-user"
    assert gateway["auth"]["trustedProxy"]["allowUsers"] == ["remote@example.com", USER]
    assert any("127.0.0.1, ::1, 127.0.0.0/8 no longer counts" in note for note in made.notes)
    assert any("'x-forwarded-user' can be guessed" in note for note in made.notes)


def test_a_name_that_nobody_is_known_to_send_becomes_unguessable() -> None:
    made = plan(behind_proxy(trustedProxies=["127.0.0.1"]))
    assert written(made)["gateway"]["auth"]["trustedProxy"]["userHeader"].endswith(RANDOM)
    assert any("'x-forwarded-user' has to send the new name" in note for note in made.notes)
    assert any("--user-header x-forwarded-user" in note for note in made.notes)
    by_root = plan(behind_proxy(trustedProxies=["127.0.0.1"]), way="redirect")
    assert any("'x-forwarded-user' has to send the new name" in note for note in by_root.notes)
    assert not any("--user-header" in note for note in by_root.notes), "gatepass-broker install has no such option"


def test_a_reverse_proxy_of_this_machine_keeps_its_name_and_is_named_to_the_proxy() -> None:
    proxies = (ReverseProxy("www-data"), ReverseProxy(33))
    made = plan(behind_proxy(trustedProxies=["127.0.0.1"]), reverse_proxies=proxies)
    assert written(made)["gateway"]["auth"]["trustedProxy"]["userHeader"] == "x-forwarded-user"
    assert made.tables["reverse_proxy"] == [{"user": "www-data"}, {"user": 33}]


def test_a_reverse_proxy_that_is_new_is_told_which_header_to_send() -> None:
    named = (ReverseProxy("www-data"),)
    assert any("calls identity.user_header" in note for note in plan(reverse_proxies=named).notes)
    # Nor is it told only if the header is new: setup may have made that up before the reverse proxy was named.
    first = plan()
    later = plan(first.config_text, first.proxy_text, reverse_proxies=named)
    assert any("calls identity.user_header" in note for note in later.notes)
    assert plan(later.config_text, later.proxy_text, reverse_proxies=named).notes == ()


def test_the_unit_of_a_reverse_proxy_is_written_and_stays_whoever_named_it() -> None:
    proxies = (ReverseProxy("www-data", "nginx.service"), ReverseProxy("proxy"))
    text = plan(reverse_proxies=proxies).proxy_text
    assert tomllib.loads(text)["reverse_proxy"] == [{"user": "www-data", "unit": "nginx.service"}, {"user": "proxy"}]
    assert make_plan(found(FRESH, text), Asked()).proxy_text == text
    again = Asked(second_port=19000, reverse_proxies=(ReverseProxy("www-data"),))
    kept = tomllib.loads(make_plan(found(FRESH, text), again).proxy_text)["reverse_proxy"]
    assert kept == [{"user": "www-data", "unit": "nginx.service"}]
    other = Asked(reverse_proxies=(ReverseProxy("www-data", "caddy.service"),))
    changed = tomllib.loads(make_plan(found(FRESH, text), other).proxy_text)["reverse_proxy"]
    assert changed == [{"user": "www-data", "unit": "caddy.service"}]


def test_where_everybody_may_come_in_it_stays_so() -> None:
    config = behind_proxy(allowUsers=[])
    assert written(plan(config))["gateway"]["auth"]["trustedProxy"]["allowUsers"] == []


@pytest.mark.parametrize(
    ("granted", "asked", "expected"),
    [
        (["operator.read"], (), ["operator.read"]),
        (["operator.admin"], (), list(OPERATOR_SCOPES)),
        (["operator.admin", "operator.read"], (), list(OPERATOR_SCOPES)),
        (["operator.admin"], ("operator.write", "operator.read"), ["operator.read", "operator.write"]),
    ],
)
def test_a_narrow_grant_is_never_widened_unasked(
    granted: list[str], asked: tuple[str, ...], expected: list[str]
) -> None:
    config = json.loads(json.dumps(FRESH))
    config["gateway"]["auth"]["identityScopes"] = {USER: granted}
    made = plan(config, scopes=asked)
    assert written(made)["gateway"]["auth"]["identityScopes"][USER] == expected
    assert made.tables["identity"]["users"] == {USER: expected}


def test_options_that_a_person_gave_the_provider_stay() -> None:
    config = json.loads(plan().config_text)
    provider = config["secrets"]["providers"]["gatepass"]
    provider |= {"args": ["--scope", "operator.read"], "passEnv": ["HOME", "MY_OWN"], "command": "/usr/bin/gatepass"}
    made = written(plan(config))["secrets"]["providers"]["gatepass"]
    assert made["args"] == ["--scope", "operator.read"]
    assert made["passEnv"] == ["HOME", "MY_OWN", "XDG_RUNTIME_DIR", "OPENCLAW_GATEWAY_PORT"]
    assert made["command"] == "/home/d/state/gatepass-secret"


def test_without_a_name_there_is_no_plan() -> None:
    with pytest.raises(NoUserError, match="--loopback-user"):
        plan(user=None)


@pytest.mark.parametrize(
    ("config", "where", "message"),
    [
        ("[1]", "1:1", "the whole must be an object"),
        ('{\n "gateway": 7 }', "2:13", "gateway must be an object"),
        ('{ "$include": "x" }', "1:15", "an \\$include at the top"),
        ('{ "secrets": { "$include": "x" } }', "1:28", "an \\$include at 'secrets'"),
        ('{ "gateway": { "port": "${PORT}" } }', "1:24", "gateway.port comes from a variable"),
        ('{ "gateway": { "mode": "remote" } }', "1:24", "only dials a gateway elsewhere"),
        ('{ "gateway": { "tls": { "enabled": true } } }', "1:36", "does not; let a reverse proxy do it"),
        ('{ "secrets": { "providers": { "gatepass": { "source": "env" } } } }', "1:55", "give it another name"),
        ('{ "gateway": { "trustedProxies": ["0.0.0.0/0"] } }', "1:34", "a range that includes this machine's own"),
    ],
)
def test_a_configuration_that_is_not_ours_to_change_is_refused_with_its_place(
    config: str, where: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        plan(config)
    assert refused.value.where == f"/home/d/openclaw.json:{where}"
    assert "Nothing was changed" in refused.value.message


def test_one_port_for_both_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot both have port 18789"):
        plan(second_port=18789)


@pytest.mark.parametrize(
    ("entry", "answer"),
    [
        ("127.0.0.1", "only"),
        ("::1", "only"),
        ("::ffff:127.0.0.1", "only"),
        ("127.0.0.0/8", "only"),
        ("10.0.0.0/8", "no"),
        ("fd00::/8", "no"),
        ("0.0.0.0/0", "also"),
        ("::/0", "also"),
        ("::ffff:0:0/96", "also"),
        ("not an address", "no"),
    ],
)
def test_ranges_that_hold_local_programs_are_known(entry: str, answer: str) -> None:
    assert covers_loopback(entry) == answer


def test_a_scope_that_this_openclaw_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="this OpenClaw has no scope"):
        plan(scopes=("operator.fly",))


def test_after_an_upgrade_whoever_may_do_everything_lacks_the_new_scopes() -> None:
    made = plan()
    upgraded = found(made.config_text, made.proxy_text)._replace(operator_scopes=(*OPERATOR_SCOPES, "operator.new"))
    assert [change.path[-2:] for change in make_plan(upgraded, Asked()).changes] == [("identityScopes", USER)]


def test_a_name_that_was_asked_for_is_kept() -> None:
    made = plan(user_header="X-Mine")
    again = make_plan(found(made.config_text, made.proxy_text), Asked())
    assert written(made)["gateway"]["auth"]["trustedProxy"]["userHeader"] == "x-mine"
    assert again.changes == ()


@pytest.mark.parametrize("port", ["18789", 0, 65535, 1.5, None])
def test_a_port_that_is_none_is_refused(port: object) -> None:
    with pytest.raises(ConfigurationError, match="this is not the number of a port"):
        plan({"gateway": {"mode": "local", "port": port}})
