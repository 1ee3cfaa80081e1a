"""A newcomer's mistakes: each is found, and its cure is said."""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Any

import pytest

from gatepass.errors import ErrorCode, GatepassError
from gatepass.openclaw_setup.choose import Asked
from gatepass.openclaw_setup.facts import Facts, Issue, Listener
from gatepass.openclaw_setup.findings import Finding, findings
from gatepass.openclaw_setup.launcher import LauncherFacts
from gatepass.openclaw_setup.plan import Found, Plan, make_plan
from gatepass.openclaw_setup.proxy_file import render
from gatepass.openclaw_setup.versions import OLDEST, caveat, parse_version, why_it_cannot_work
from gatepass.replies import GrantedTerms, Whoami

USER = "derek@example.com"
UID = 1000
SCOPES = ("operator.admin", "operator.read", "operator.write")
FRESH = '{ "gateway": { "mode": "local" } }'


BY_HAND = Asked(user=USER)
AS_A_SERVICE = Asked(user=USER, way="redirect", second_port=789, broker_socket="/run/gatepass/broker.sock")


def made_plan(
    spoil: Callable[[str], str] = str, spoil_proxy: Callable[[str], str] = str, asked: Asked = BY_HAND
) -> Plan:
    """Return what check works with, after setup and then `spoil`."""
    found = Found(
        "/o/openclaw.json", FRESH, "/o/gateway.toml", None, "/o/secret", UID, "/bin/gatepass", SCOPES, "a" * 32
    )
    made = make_plan(found, asked)
    found = found._replace(
        config_text=spoil(made.config_text), proxy_text=spoil_proxy(render(made.tables)), random="b" * 32
    )
    return make_plan(found, Asked())


def facts(plan: Plan, **changes: Any) -> Facts:
    """Return what is the case where all is well, but for `changes`."""
    launcher = LauncherFacts("/o/secret", True, stat.S_IFREG | 0o700, UID, plan.launcher_text)
    grant = GrantedTerms(USER, ("openclaw",), "operator.read", 3600)
    well = {
        "config": "/o/openclaw.json",
        "config_mode": stat.S_IFREG | 0o600,
        "proxy_file": "/o/gateway.toml",
        "launcher": launcher,
        "issues": (),
        "token_variables": (),
        "at_proxy_port": Listener(UID, None),
        "at_openclaw_port": Listener(UID, "openclaw-gateway"),
        "answering": "proxy",
        "broker": Whoami(UID, UID, (), 4, "gatepass:here", grant),
        "is_locked": False,
        "uid": UID,
        "proxy_uids": frozenset({0, UID, 990}),
        "commands": "/opt/bin",
    }
    return Facts(**{**well, **changes})


def only(plan: Plan, **changes: Any) -> Finding:
    """Return the one finding."""
    (finding,) = findings(plan, facts(plan, **changes))
    return finding


def test_where_all_is_well_there_is_nothing_to_find() -> None:
    plan = made_plan()
    assert findings(plan, facts(plan)) == ()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"mode": "trusted-proxy"', '"mode": "token"', 'gateway.auth.mode is "token", and has to be "trusted-proxy"'),
        ('"password":', '"token": "x", "password":', "gateway.auth.token is set, and must not be: with a shared token"),
        ('"allowLoopback": true', '"allowUsers2": 1', "gateway.auth.trustedProxy.allowLoopback is missing, and has to"),
        ('"identityScopes"', '"other"', f'gateway.auth.identityScopes["{USER}"] is missing, and has to be ["operator.'),
        ('"127.7.7.7"', '"127.7.7.7", "127.0.0.1"', 'gateway.trustedProxies is ["127.7.7.7", "127.0.0.1"], and has to'),
        ('"OPENCLAW_GATEWAY_PORT"', '"PATH"', "secrets.providers.gatepass.passEnv is"),
        (
            '{"source": "exec", "provider"',
            '{"source": "env", "provider"',
            "gateway.auth.password is (a secret), and has",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_found(old: str, new: str, problem: str) -> None:
    def spoil(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    finding = only(made_plan(spoil))
    assert (finding.code, finding.cure) == ("config", "gatepass openclaw setup --write")
    assert finding.problem.startswith(problem)


def test_another_header_than_the_proxys_is_found_and_neither_is_told() -> None:
    finding = only(made_plan(str, lambda text: text.replace("a" * 32, "c" * 32)))
    assert finding.code == "proxy_file"
    assert finding.problem.startswith("identity.user_header is not the name that OpenClaw has")
    assert "aaaa" not in finding.problem
    assert "cccc" not in finding.problem


@pytest.mark.parametrize(
    ("changes", "code", "problem", "cure"),
    [
        (
            {"issues": (Issue("gateway.bind", "Invalid input"),)},
            "invalid",
            "OpenClaw says: gateway.bind: Invalid input",
            "openclaw doctor --fix",
        ),
        (
            {"config_mode": stat.S_IFREG | 0o644},
            "config",
            "others can read the name of the identity header",
            "chmod 600 /o/openclaw.json",
        ),
        (
            {"token_variables": ("the environment",)},
            "token_variable",
            "OPENCLAW_GATEWAY_TOKEN is set here",
            "unset OPENCLAW_GATEWAY_TOKEN",
        ),
        (
            {
                "broker": GatepassError(
                    ErrorCode.PERMISSION, "only the group 'g' may use /run/g: 'sudo usermod -aG g d'"
                )
            },
            "broker",
            "only the group 'g' may use /run/g",
            "'sudo usermod -aG g d'",
        ),
        (
            {"broker": GatepassError(ErrorCode.UNREACHABLE, "no broker is running")},
            "broker",
            "no broker is running",
            f"gatepass-broker --loopback-user {USER}",
        ),
        (
            {"is_locked": True},
            "broker",
            "an administrator has locked gatepass: nobody logs in",
            "gatepass unlock",
        ),
        (
            {"broker": Whoami(UID, UID, (), 4, "gatepass:here", None)},
            "broker",
            "no rule of the broker matches you",
            f"gatepass-broker --loopback-user {USER}",
        ),
        (
            {"broker": Whoami(UID, UID, (), 4, "i", GrantedTerms("eve@example.com", ("openclaw",), "", 60))},
            "broker",
            f"the broker calls you 'eve@example.com', and OpenClaw expects '{USER}'",
            "--loopback-user eve@example.com",
        ),
        (
            {"broker": Whoami(UID, UID, (), 4, "i", GrantedTerms(USER, ("other",), "", 60))},
            "broker",
            "the broker grants you no tokens for 'openclaw'",
            "--audience openclaw",
        ),
        (
            {"at_proxy_port": None},
            "proxy_port",
            "the gatepass proxy is not running",
            "/opt/bin/gatepass-gateway --config /o/gateway.toml",
        ),
        (
            {"at_proxy_port": Listener(UID, "openclaw-gateway")},
            "proxy_port",
            "the port is taken: OpenClaw itself listens here",
            "openclaw gateway run --port 18790",
        ),
        (
            {"at_proxy_port": Listener(1234, None)},
            "proxy_port",
            "the port is taken by a program of uid 1234",
            "--proxy-user 1234",
        ),
        ({"at_openclaw_port": None}, "openclaw_port", "OpenClaw is not running", "openclaw gateway run --port 18790"),
        (
            {"at_openclaw_port": Listener(1234, None)},
            "openclaw_port",
            "the port is taken by a program of uid 1234",
            "--second-port PORT",
        ),
        (
            {"at_openclaw_port": Listener(UID, "python3 -m http.server")},
            "openclaw_port",
            "the port is taken by 'python3 -m http.server'",
            "--second-port PORT",
        ),
    ],
)
def test_what_is_amiss_on_the_machine_is_found(changes: dict[str, Any], code: str, problem: str, cure: str) -> None:
    finding = only(made_plan(), **changes)
    assert finding.code == code
    assert problem in finding.problem
    assert cure in finding.cure


@pytest.mark.parametrize(
    ("answering", "problem"),
    [("other", "does not reach the gatepass proxy"), ("refused", "is refused"), ("silent", "does not answer")],
)
def test_ports_that_listen_are_not_enough(answering: str, problem: str) -> None:
    """systemd holds the proxy's port whatever becomes of the proxy, and a redirect can be gone."""
    finding = only(made_plan(), answering=answering)
    assert (finding.code, finding.where) == ("answer", "port 18789")
    assert problem in finding.problem


@pytest.mark.parametrize(
    ("changes", "cure"),
    [
        (
            {"broker": GatepassError(ErrorCode.UNREACHABLE, "no broker is running")},
            "sudo systemctl restart gatepass-broker.socket gatepass-broker",
        ),
        ({"is_locked": True}, "sudo gatepass unlock"),
        ({"broker": Whoami(UID, UID, (), 4, "i", None)}, "a [[rule]] in /etc/gatepass/broker.toml"),
        (
            {"broker": Whoami(UID, UID, (), 4, "i", GrantedTerms("eve@example.com", ("openclaw",), "", 60))},
            "sudo gatepass-broker install --loopback-user eve@example.com",
        ),
        (
            {"broker": Whoami(UID, UID, (), 4, "i", GrantedTerms(USER, ("other",), "", 60))},
            "'openclaw' among 'audiences' of a [[rule]]",
        ),
        ({"at_proxy_port": None}, "sudo systemctl restart gatepass-redirect gatepass-gateway.socket gatepass-gateway"),
        ({"answering": "refused"}, "sudo systemctl restart gatepass-redirect"),
        ({"at_openclaw_port": None}, "sudo systemctl start openclaw-gateway"),
    ],
)
def test_what_root_has_installed_is_mended_by_root(changes: dict[str, Any], cure: str) -> None:
    assert cure in only(made_plan(asked=AS_A_SERVICE), **changes).cure


def test_a_port_of_openclaws_own_that_was_changed_since_is_mended_by_root_too() -> None:
    """By the ports alone it would be taken for one with the port in front, and a person told to make it so."""
    made = made_plan(asked=AS_A_SERVICE)
    text = made.config_text.replace('"mode": "local"', '"mode": "local", "port": 19000', 1)
    found = Found(
        "/o/openclaw.json", text, "/o/gateway.toml", made.proxy_text, "/o/secret", UID, "/g", SCOPES, "b" * 32
    )
    plan = make_plan(found, Asked(user=USER, way="redirect"))
    assert (plan.wishes.proxy_port, plan.wishes.openclaw_port) == (789, 19000)
    problems = {finding.problem: finding.cure for finding in findings(plan, facts(plan))}
    assert (
        problems["upstream.port is 18789, and has to be 19000 to agree with OpenClaw"] == "sudo gatepass-broker install"
    )


@pytest.mark.parametrize(
    ("changes", "problem", "cure"),
    [
        ({"exists": False}, "the launcher is missing", "gatepass openclaw setup --write"),
        ({"mode": stat.S_IFLNK | 0o777}, "the launcher is a symbolic link", "remove it, then: gatepass openclaw setup"),
        ({"mode": stat.S_IFDIR | 0o700}, "the launcher is not a regular file", "remove it, then: gatepass openclaw"),
        ({"uid": 0}, "the launcher belongs to root", "sudo rm /o/secret, then as the user who runs OpenClaw"),
        ({"mode": stat.S_IFREG | 0o770}, "others can write to the launcher", "chmod 700 /o/secret"),
        ({"mode": stat.S_IFREG | 0o600}, "the launcher cannot be executed", "chmod 700 /o/secret"),
        ({"text": "#!/bin/sh\n"}, "the launcher does not start this gatepass", "gatepass openclaw setup --write"),
    ],
)
def test_a_launcher_that_openclaw_refuses_is_found(changes: dict[str, Any], problem: str, cure: str) -> None:
    plan = made_plan()
    finding = only(plan, launcher=facts(plan).launcher._replace(**changes))
    assert finding.code == "launcher"
    assert problem in finding.problem
    assert cure in finding.cure


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("OpenClaw 2026.3.31 (1234567)", "no trustedProxy.allowLoopback"),
        ("OpenClaw 2026.6.11", "no gateway.auth.identityScopes"),
        ("OpenClaw 2026.7.35", f"OpenClaw 2026.7.35 cannot work with gatepass.*upgrade it to {OLDEST} or later"),
        (f"OpenClaw {OLDEST}-beta.1", "no gateway.auth.identityScopes"),
    ],
)
def test_an_openclaw_that_cannot_work_is_refused_by_name(said: str, reason: str) -> None:
    version = parse_version(said)
    assert version is not None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(why_it_cannot_work(version))


@pytest.mark.parametrize("said", [f"OpenClaw {OLDEST} (ea80657)", "OpenClaw 2026.9.6", "2026.10.1-2", "2027.1.1"])
def test_an_openclaw_that_works_is_not_refused(said: str) -> None:
    version = parse_version(said)
    assert version is not None
    assert why_it_cannot_work(version) is None


@pytest.mark.parametrize(("said", "is_partial"), [(OLDEST, True), ("2026.9.5", True), ("2026.9.6", False)])
def test_what_an_older_openclaw_cannot_do_is_said(said: str, is_partial: bool) -> None:
    version = parse_version(said)
    assert version is not None
    assert ("gateway call" in (caveat(version) or "")) is is_partial
