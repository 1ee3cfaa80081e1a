"""OpenClaw as a service behind nginx, and gatepass: who gets in, what is refused, and what stops with what."""

from __future__ import annotations

import json
import re
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest

from e2e.callers import Answer, bearer, http_request
from e2e.machine import Machine, needs_machine
from e2e.many_clients import HTTP_CLIENTS, SESSIONS, Seen, many_clients
from e2e.model_server import Call, ModelServer, Say
from e2e.network import in_network, network_of, run_in_network
from e2e.nginx import ALICE, SESSION, Nginx
from e2e.openclaw_config import OPERATOR_SCOPES, USER
from e2e.openclaw_install import OpenClawInstall
from e2e.openclaw_instance import Account
from e2e.service_host import (
    OPENCLAW_HOME,
    OPENCLAW_UNIT,
    OWN_ADDRESSES,
    PORT,
    PROXY_PORT,
    OpenClawService,
    before_setup,
    bring_newer_gatepass,
    can_hang,
    cannot_hang,
    current_release,
    hang,
    install,
    prepare_installer,
)

pytestmark = [*needs_machine, pytest.mark.timeout(400, method="signal")]

REDIRECT = "gatepass-redirect.service"
CONFIGURED = ("--config", "/etc/gatepass/gateway.toml")
STARTS_IN = 4.0
"""Seconds in which a service that was killed is back, with much else going on."""
INVOKE = {"tool": "sessions_list", "args": {}}
MALLORY = Account(4242, 4242)
"""Somebody whom neither the machine nor OpenClaw knows."""


class Chain(NamedTuple):
    """Everything that a request passes through."""

    machine: Machine
    openclaw: OpenClawService
    nginx: Nginx
    model: ModelServer

    @property
    def user_header(self) -> str:
        """The header in which identities travel, from the configuration that install made."""
        name: str = tomllib.loads(self.machine.read("/etc/gatepass/gateway.toml"))["identity"]["user_header"]
        return name

    def account(self, name: str) -> Account:
        """The account of that name inside."""
        found = self.machine.account(name)
        return Account(found.uid, found.gid)

    def ask(self, account: Account, headers: list[tuple[str, str]], host: str = "127.0.0.1", **more: Any) -> Answer:
        """Send a request to OpenClaw's port on the machine."""
        request = partial(
            http_request, more.pop("port", PORT), "POST", "/tools/invoke", headers, body=INVOKE, host=host, **more
        )
        return run_in_network(network_of(self.machine.pid), account, request)

    def token(self, user: str) -> str:
        """A fresh token of somebody inside."""
        token: str = self.machine.run("gatepass", "token", user=user).stdout.strip()
        return token


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def chain(request: pytest.FixtureRequest, openclaw_install: OpenClawInstall) -> Iterator[Chain]:
    with ExitStack() as parts:
        machine = parts.enter_context(Machine(request.param, openclaw=openclaw_install))
        machine.boot()
        with in_network(network_of(machine.pid)):
            model = parts.enter_context(ModelServer())
        openclaw = OpenClawService(machine, openclaw_install)
        openclaw.create(behind_nginx(model))
        nginx = Nginx(machine)
        prepare_installer(machine)
        install(
            machine,
            *("--loopback-user", USER, "--openclaw-user", "openclaw", "--openclaw-unit", OPENCLAW_UNIT),
            *("--openclaw", "/usr/local/bin/openclaw", "--reverse-proxy", "www-data:nginx.service"),
        )
        # Until it is made to; here, since OpenClaw is restarted with it once it runs.
        can_hang(machine, REDIRECT, "gatepass_gateway.redirect", *CONFIGURED, watchdog_seconds=4)
        machine.systemctl("restart", REDIRECT)
        machine.systemctl("enable", OPENCLAW_UNIT)
        machine.systemctl("start", OPENCLAW_UNIT)
        openclaw.wait_until_ready()
        chain = Chain(machine, openclaw, nginx, model)
        nginx.start(chain.user_header)
        yield chain


def behind_nginx(model: ModelServer) -> dict[str, Any]:
    """The configuration of somebody whose OpenClaw is behind nginx already, and whose own commands are locked out."""
    config = before_setup(model)
    gateway = config["gateway"]
    gateway["trustedProxies"] = ["127.0.0.1", "::1"]
    gateway["auth"] = {
        "mode": "trusted-proxy",
        "trustedProxy": {"userHeader": "x-auth-request-email", "allowUsers": [ALICE], "allowLoopback": True},
        "identityScopes": {ALICE: list(OPERATOR_SCOPES)},
    }
    config["tools"] = {"exec": {"security": "full", "ask": "off", "host": "gateway"}}
    return config


def test_openclaws_own_commands_are_in_as_the_loopback_user(chain: Chain) -> None:
    for command in (["cron", "list"], ["health"], ["gateway", "call", "status"]):
        done = chain.openclaw.cli(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert f"user={USER}" in chain.machine.journal(OPENCLAW_UNIT)


def test_what_an_agent_starts_is_in_though_its_environment_names_the_gateways_own_port(chain: Chain) -> None:
    line = "(env | grep OPENCLAW_GATEWAY_PORT; openclaw cron list; echo $?) >/tmp/child.txt 2>&1"
    chain.model.play(Call("exec", {"command": line}), Say(["done"]))
    done = chain.openclaw.cli("agent", "--agent", "main", "--message", "list the cron jobs")
    assert done.returncode == 0, done.stdout + done.stderr
    said = chain.machine.read("/tmp/child.txt")
    assert f"OPENCLAW_GATEWAY_PORT={PORT}" in said
    assert said.splitlines()[-1] == "0", said


@pytest.mark.parametrize("host", OWN_ADDRESSES)
def test_a_forged_header_is_refused_at_every_address_of_this_machine(chain: Chain, host: str) -> None:
    forged = [(chain.user_header, ALICE), ("X-Forwarded-For", "203.0.113.7")]
    for account in (MALLORY, Account(0, 0), chain.account("openclaw"), chain.account("www-data")):
        answer = chain.ask(account, forged, host)
        assert answer.status == 403, answer.text
        assert "counts only from the reverse proxy" in answer.text


def test_not_even_from_the_address_that_openclaw_trusts(chain: Chain) -> None:
    forged = [(chain.user_header, ALICE), ("X-Forwarded-For", "203.0.113.7")]
    answer = chain.ask(MALLORY, forged, source="127.7.7.7")
    assert answer.status == 403, answer.text


@pytest.mark.parametrize("host", OWN_ADDRESSES)
def test_a_token_is_its_owners_at_every_address_and_nobody_elses(chain: Chain, host: str) -> None:
    token = chain.token("openclaw")
    assert chain.ask(chain.account("openclaw"), [bearer(token)], host).status == 200
    stolen = chain.ask(MALLORY, [bearer(token)], host)
    assert stolen.status == 401
    assert "issued to another user" in stolen.text


def test_the_proxy_is_known_by_its_mark_where_the_kernel_answers_for_it(chain: Chain) -> None:
    """As it does, without a socket, while any user has many connections half open (SYN cookies)."""
    token = chain.token("openclaw")
    chain.machine.shell("echo 2 >/proc/sys/net/ipv4/tcp_syncookies")
    try:
        for host in OWN_ADDRESSES:
            assert chain.ask(chain.account("openclaw"), [bearer(token)], host).status == 200
    finally:
        chain.machine.shell("echo 1 >/proc/sys/net/ipv4/tcp_syncookies")


def test_a_person_comes_in_through_nginx_as_before(chain: Chain) -> None:
    with chain.machine.bridge_container() as container:
        answer = chain.nginx.ask(container, [("Cookie", SESSION)])
        assert answer.status == 200, answer.text
        assert chain.nginx.ask(container, []).status == 401
        # What the client says about itself is replaced, not believed.
        forged = [("Cookie", SESSION), (chain.user_header, USER)]
        assert chain.nginx.ask(container, forged).status == 200
        login = chain.nginx.log_in(container)
        assert login.ok, login.error
        assert f"user={ALICE}" in chain.machine.journal(OPENCLAW_UNIT)


def test_with_nginx_stopped_nobody_else_can_be_it(chain: Chain) -> None:
    forged = [(chain.user_header, ALICE), ("X-Forwarded-For", "203.0.113.7")]
    chain.machine.systemctl("stop", "nginx.service")
    try:
        # nginx's own account, from a unit whose name imitates it, and from its port.
        source = (
            "import http.client as h\n"
            f"c = h.HTTPConnection('127.0.0.1', {PORT})\n"
            f"c.request('POST', '/tools/invoke', b'{{}}', {dict(forged)!r})\n"
            "r = c.getresponse(); print(r.status, r.read())"
        )
        run = ("systemd-run", "--quiet", "--wait", "--pipe", "--uid=www-data", "--unit=nginx-imitation.service")
        said = chain.machine.run(*run, "python3", "-c", source).stdout
        assert said.startswith("403"), said
    finally:
        chain.machine.systemctl("start", "nginx.service")


@pytest.mark.parametrize(
    "meddling",
    [
        "nft flush ruleset",
        "nft add table inet raw0; nft add chain inet raw0 o '{ type filter hook output priority raw; }';"
        " nft add rule inet raw0 o oif lo notrack",
        "nft delete table inet gatepass; nft flush table inet gatepass",
    ],
    ids=["flush", "notrack", "delete"],
)
def test_meddling_with_the_firewall_opens_no_way(chain: Chain, meddling: str) -> None:
    chain.machine.shell(meddling, check=False)
    try:
        assert_shut(chain)
    finally:
        chain.machine.shell("nft delete table inet raw0 2>/dev/null", check=False)
    assert chain.openclaw.cli("cron", "list").returncode == 0


def test_a_container_on_a_bridge_finds_the_port_shut(chain: Chain) -> None:
    forged = [(chain.user_header, ALICE), ("X-Forwarded-For", "203.0.113.7")]
    with chain.machine.bridge_container() as container:
        for host in (container.host_address, "192.0.2.10"):
            request = partial(http_request, PORT, "GET", "/v1/models", forged, host=host)
            with pytest.raises(AssertionError, match="ConnectionRefusedError"):
                run_in_network(container.namespace, MALLORY, request)


def assert_shut(chain: Chain) -> None:
    """Nobody is Alice at OpenClaw's port, whatever was done to the firewall."""
    for host in OWN_ADDRESSES:
        for source in (None, "127.7.7.7") if host.startswith("127.") else (None,):
            assert forge(chain, host, source) in ("403", "refused")


def forge(chain: Chain, host: str, source: str | None) -> str:
    """Say to be Alice, and return the answer's status, or `refused` where there is no connection to be had."""
    forged = [(chain.user_header, ALICE), ("X-Forwarded-For", "203.0.113.7")]
    try:
        return str(chain.ask(MALLORY, forged, host, source=source).status)
    except AssertionError as error:
        if any(name in str(error) for name in ("ConnectionRefusedError", "ConnectionResetError")):
            return "refused"
        raise


def test_with_the_proxy_stopped_logins_are_refused_and_its_port_is_nobodys(chain: Chain) -> None:
    machine = chain.machine
    machine.systemctl("stop", "gatepass-gateway.socket", "gatepass-gateway.service")
    try:
        with pytest.raises(AssertionError, match="ConnectionRefusedError"):
            chain.ask(chain.account("openclaw"), [bearer(chain.token("openclaw"))])
        assert_shut(chain)
        taken = machine.run(
            *("python3", "-c", f"import socket; socket.create_server(('127.0.0.1', {PROXY_PORT}))"),
            user="openclaw",
            check=False,
        )
        assert "PermissionError" in taken.stderr
        assert machine.property(OPENCLAW_UNIT, "ActiveState") == "active"
    finally:
        machine.systemctl("start", "gatepass-gateway.socket")
    assert chain.openclaw.cli("cron", "list").returncode == 0


def test_a_masked_proxy_stays_shut_when_openclaw_starts_again(chain: Chain) -> None:
    """As the page says: OpenClaw wants the socket, and would start one that is stopped only."""
    machine, units = chain.machine, ("gatepass-gateway.socket", "gatepass-gateway.service")
    ready, pid = chain.openclaw.times_ready(), machine.property(OPENCLAW_UNIT, "MainPID")
    machine.systemctl("mask", "--runtime", "--now", *units)
    try:
        machine.systemctl("kill", "--signal=SIGKILL", OPENCLAW_UNIT)
        machine.wait_until(lambda: machine.property(OPENCLAW_UNIT, "MainPID") not in (pid, "0"))
        assert [machine.property(unit, "ActiveState") for unit in units] == ["inactive", "inactive"]
    finally:
        machine.systemctl("unmask", "--runtime", *units)
        machine.systemctl("start", units[1])
    chain.openclaw.wait_until_ready(ready)
    assert chain.openclaw.cli("cron", "list").returncode == 0


@contextmanager
def clients_of(chain: Chain) -> Iterator[Future[Seen]]:
    """Have many clients at OpenClaw's port during the block, and tell after it what they saw."""
    with ThreadPoolExecutor(1) as pool, TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)  # for the clients' user
        enough = Path(directory) / "enough"
        everyone = partial(many_clients, PORT, chain.token("openclaw"), enough)
        clients = pool.submit(run_in_network, network_of(chain.machine.pid), chain.account("openclaw"), everyone)
        try:
            yield clients
        finally:
            enough.touch()
            wait([clients])


def test_clients_outlive_a_proxy_and_a_broker_that_are_killed(chain: Chain) -> None:
    """What is under way is cut off at once; who asks again is served, and sessions come back with their token."""
    machine, proxy = chain.machine, "gatepass-gateway.service"
    started = machine.property(OPENCLAW_UNIT, "MainPID")
    with clients_of(chain) as clients:
        time.sleep(1)
        machine.systemctl("restart", proxy)
        for number in ("KILL", "SEGV"):
            machine.systemctl("kill", f"--signal={number}", proxy, "gatepass-broker.service")
            time.sleep(1.5)
    seen = clients.result()
    assert seen.faults == []
    assert seen.answers["refused"] == 0, seen  # the port is the socket unit's
    assert seen.answers["200"] > HTTP_CLIENTS * 4, seen
    assert seen.answers["connect"] >= SESSIONS * 3, seen
    assert seen.slowest < STARTS_IN, seen
    assert machine.property(OPENCLAW_UNIT, "MainPID") == started
    assert "dumped" not in machine.journal(proxy)


def test_an_upgrade_loses_no_client_and_leaves_openclaw_alone(chain: Chain) -> None:
    machine, units = chain.machine, (OPENCLAW_UNIT, REDIRECT, "gatepass-gateway.service", "gatepass-broker.service")
    release, before = current_release(machine), [machine.property(unit, "MainPID") for unit in units]
    with clients_of(chain) as clients:
        time.sleep(1)
        bring_newer_gatepass(machine)
        install(machine)
        time.sleep(1)
    seen = clients.result()
    assert seen.faults == []
    assert seen.answers["refused"] == 0, seen
    assert seen.answers["200"] > HTTP_CLIENTS * 4, seen
    assert seen.answers["connect"] >= SESSIONS * 2, seen
    assert seen.slowest < STARTS_IN, seen
    assert current_release(machine) != release
    kept = [machine.property(unit, "MainPID") == pid for unit, pid in zip(units, before, strict=True)]
    assert kept == [True, True, False, False]


def test_a_proxy_that_restarts_loses_no_request(chain: Chain) -> None:
    """The port is the socket unit's: who connects meanwhile waits."""
    account, token = chain.account("openclaw"), chain.token("openclaw")
    for _ in range(3):
        chain.machine.systemctl("restart", "--no-block", "gatepass-gateway.service")
        assert chain.ask(account, [bearer(token)]).status == 200


def test_without_the_redirect_openclaw_stops_and_comes_back_with_it(chain: Chain) -> None:
    machine, ready = chain.machine, chain.openclaw.times_ready()
    machine.systemctl("stop", "gatepass-redirect.service")
    machine.wait_until(lambda: machine.property(OPENCLAW_UNIT, "ActiveState") == "inactive", timeout=30)
    assert "gatepass_guard" in machine.run("nft", "list", "tables").stdout
    with pytest.raises(AssertionError, match="ConnectionRefusedError"):
        chain.ask(MALLORY, [])
    machine.systemctl("start", "gatepass-redirect.service")
    chain.openclaw.wait_until_ready(ready)
    assert chain.openclaw.cli("cron", "list").returncode == 0


def test_a_proxy_whose_loop_hangs_is_killed_and_logins_work_again(chain: Chain) -> None:
    machine, unit = chain.machine, "gatepass-gateway.service"
    can_hang(machine, unit, "gatepass_gateway", *CONFIGURED, watchdog_seconds=3)
    machine.systemctl("restart", unit)
    account, token = chain.account("openclaw"), chain.token("openclaw")
    hang(machine, unit)
    started = time.monotonic()
    # This one waits in the queue of the port for the next proxy.
    assert chain.ask(account, [bearer(token)]).status == 200
    assert time.monotonic() - started < 3 + STARTS_IN
    assert watchdog_kills(machine, unit) == 1
    cannot_hang(machine, unit)
    assert chain.openclaw.cli("cron", "list").returncode == 0


def test_a_crash_of_the_redirect_leaves_the_port_shut_until_all_is_well_again(chain: Chain) -> None:
    """It hangs, and the watchdog kills it."""
    machine, ready, pid = chain.machine, chain.openclaw.times_ready(), chain.machine.property(REDIRECT, "MainPID")
    hang(machine, REDIRECT)
    while machine.property(REDIRECT, "MainPID") == pid:
        assert_shut(chain)
    assert_shut(chain)
    assert watchdog_kills(machine, REDIRECT) == 1
    cannot_hang(machine, REDIRECT)
    chain.openclaw.wait_until_ready(ready)
    machine.wait_until(lambda: machine.property(REDIRECT, "ActiveState") == "active", timeout=10)
    assert chain.openclaw.cli("cron", "list").returncode == 0
    assert_shut(chain)


def watchdog_kills(machine: Machine, unit: str) -> int:
    """How often systemd has killed the service for not saying that it is alive."""
    return machine.journal(unit).count("Watchdog timeout")


def test_openclaw_starts_reloads_and_serves_its_remote_users_with_the_broker_down(chain: Chain) -> None:
    machine, ready = chain.machine, chain.openclaw.times_ready()
    broker = ("gatepass-broker.socket", "gatepass-broker-follow.socket", "gatepass-broker.service")
    machine.systemctl("mask", "--runtime", "--now", *broker)  # or OpenClaw, which wants it, would have it started
    try:
        machine.systemctl("restart", OPENCLAW_UNIT)
        chain.openclaw.wait_until_ready(ready)
        path = f"{OPENCLAW_HOME}/openclaw.json"
        config = json.loads(machine.read(path))
        config["gateway"]["auth"]["identityScopes"]["new@example.com"] = ["operator.read"]
        machine.write(path, json.dumps(config), mode=0o600, owner="openclaw")
        reloaded = re.compile("config change applied|config hot reload applied")
        machine.wait_until(lambda: reloaded.search(machine.journal(OPENCLAW_UNIT)), timeout=30)
        with machine.bridge_container() as container:
            assert chain.nginx.ask(container, [("Cookie", SESSION)]).status == 200
        failed = chain.openclaw.cli("cron", "list")
        assert failed.returncode != 0
        assert "the gatepass broker was not running" in failed.stdout + failed.stderr
    finally:
        machine.systemctl("unmask", "--runtime", *broker)
        machine.systemctl("start", *broker[:2])
    assert chain.openclaw.cli("cron", "list").returncode == 0


def test_after_a_reboot_everything_is_there_in_order_and_nothing_else_was_done(chain: Chain) -> None:
    machine = chain.machine
    machine.stop()
    machine.boot()
    chain.openclaw.wait_until_ready()
    assert chain.openclaw.cli("cron", "list").returncode == 0
    assert_shut(chain)
    order = [
        float(machine.property(unit, "ActiveEnterTimestampMonotonic"))
        for unit in ("gatepass-redirect.service", OPENCLAW_UNIT)
    ]
    assert order == sorted(order)


def test_undone_nothing_is_left_and_openclaw_goes_on_with_what_was_changed_since(chain: Chain) -> None:
    machine, ready = chain.machine, chain.openclaw.times_ready()
    path, original = f"{OPENCLAW_HOME}/openclaw.json", behind_nginx(chain.model)
    config = json.loads(machine.read(path))
    config["gateway"]["auth"]["identityScopes"]["later@example.com"] = ["operator.read"]
    machine.write(path, json.dumps(config), mode=0o600, owner="openclaw")
    install(machine, "--undo")
    chain.openclaw.wait_until_ready(ready)
    expected = original["gateway"]
    expected["auth"]["identityScopes"]["later@example.com"] = ["operator.read"]
    restored = json.loads(machine.read(path))
    restored["gateway"]["auth"]["identityScopes"].pop("new@example.com", None)  # of the test with the broker down
    assert restored["gateway"] == expected
    assert "secrets" not in restored
    places = "find /etc /opt /usr/local /var/lib -name '*gatepass*'"
    left = machine.shell(f"{places}; nft list tables; getent passwd; getent group").stdout.splitlines()
    assert [line for line in left if "gatepass" in line] == ["/var/lib/gatepass"]
    # As before gatepass: its port is its own again, and a local program is whoever it says it is.
    forged = [("x-auth-request-email", ALICE), ("X-Forwarded-For", "203.0.113.7")]
    assert chain.ask(MALLORY, forged).status == 200
