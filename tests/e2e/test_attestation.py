"""Who is calling, under a real systemd: each selector with a process that it means, and with imitations of that.

All rules are in force at once. Each makes its callers somebody else, so a token's subject says which of them matched.
"""

from __future__ import annotations

import json
import os
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from e2e.machine import Machine, Process, needs_machine
from e2e.service_host import INSTALLER, PYTHON, broker_host
from e2e.stack import CHECKOUT

pytestmark = [*needs_machine, pytest.mark.timeout(300, method="signal")]

BROKER = "gatepass-broker.service"
KERNEL = tuple(int(number) for number in os.uname().release.split(".")[:2])
PROGRAMS = Path(__file__).with_name("in_machine")
AGENT = "/srv/agent.py"
GATEPASS = "/usr/local/bin/gatepass"
CONTAINER = "0123456789abcdef" * 4
DENIED = "denied"
MEANT, MEANT_TOO = "agent", "elder"
"""Whom the rules are for. Two, because the broker records 30 refusals a minute of one user."""
UPSTREAM_PORT = 18_789

RULES = {
    "unit": 'unit = ["agent.service", "worker@*.service"]',
    "bound": 'unit = "bound.service"\nbind = "unit"',
    "user-unit": 'user_unit = "tui.service"',
    "slice": 'slice = "bots.slice"',
    "user-slice": 'user_slice = "desk.slice"',
    "cgroup": 'cgroup = "/agents.slice"',
    "container": f'container = "{CONTAINER}"',
    "nested": 'pid_namespace = "nested"',
    "group": 'group = "robots"',
}
GATEWAY = """\
[listen]
port = 789
addresses = ["127.0.0.1", "127.0.0.2", "::1"]
[upstream]
port = {port}
user = "upstream"
[identity]
user_header = "x-user"
[identity.users]
"bound@example.com" = []
"unit@example.com" = []
[keys]
broker_socket = "/run/gatepass/follow.sock"
"""


def rules_text() -> str:
    """Return the rules: each with one selector besides the users, and with an identity of its own."""
    users = f'user = ["{MEANT}", "{MEANT_TOO}"]'
    tables = (
        f'[[rule]]\nname = "{name}"\n{users}\n{selector}\nidentity = "{name}@example.com"\nscopes = []\n'
        for name, selector in RULES.items()
    )
    return "\n".join(tables)


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with broker_host(request.param) as machine:
        machine.run("groupadd", "robots")
        for name in (MEANT, MEANT_TOO, "other"):
            machine.add_user(name, groups=("gatepass",), linger=True)
        machine.add_user("upstream", system=True)
        for program in PROGRAMS.glob("*.py"):
            machine.write(f"/srv/{program.name}", program.read_text())
        machine.write("/etc/gatepass/conf.d/attestation.toml", rules_text())
        machine.systemctl("restart", BROKER)
        yield machine


class Claims(NamedTuple):
    """What a token says, unverified."""

    subject: str
    actor: str
    confirmation: dict[str, Any]


def claims_of(token: str) -> Claims:
    """Read a token."""
    body = token.split(".")[1]
    claims = json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return Claims(claims["sub"].removesuffix("@example.com"), claims["act"]["sub"], claims["cnf"])


def who(machine: Machine, *command: str, user: str | None = None) -> str:
    """Return by which rule a command, which asks for a token, was given one; or that it was denied."""
    done = machine.run(*command, user=user, check=False)
    if done.returncode == 3:
        return DENIED
    assert done.returncode == 0, done.stdout + done.stderr
    return claims_of(done.stdout).subject


ASK = (GATEPASS, "token")
RUN = ("systemd-run", "--quiet", "--collect", "--pipe", "--wait")
SCOPE = ("systemd-run", "--quiet", "--collect", "--scope")
DELEGATE = "--property=Delegate=yes"


def as_user(name: str) -> tuple[str, ...]:
    """Return what makes root's command one of that user's, with the groups that it has now, where it is."""
    return ("setpriv", f"--reuid={name}", f"--regid={name}", "--init-groups", "--")


def system_service(machine: Machine, unit: str, *options: str, user: str = MEANT) -> str:
    """Ask from a service of the system's manager."""
    return who(machine, *RUN, f"--unit={unit}", f"--uid={user}", *options, *ASK)


def system_scope(machine: Machine, unit: str, *options: str) -> str:
    """Ask from a scope of the system's manager, as a container's runtime makes one."""
    return who(machine, *SCOPE, f"--unit={unit}", *options, *as_user(MEANT), *ASK)


def own_service(machine: Machine, unit: str, *options: str, user: str = MEANT) -> str:
    """Ask from a service of the person's own manager."""
    return who(machine, *RUN, "--user", f"--unit={unit}", *options, *ASK, user=user)


def own_scope(machine: Machine, unit: str, *options: str) -> str:
    """Ask from a scope of the person's own manager."""
    return who(machine, *SCOPE, "--user", f"--unit={unit}", *options, *ASK, user=MEANT)


def nested_cgroup(machine: Machine, name: str, user: str = MEANT) -> str:
    """Ask from a cgroup of that name which a service, to which its own is delegated, has made beneath it."""
    with Agent(machine, "delegated.service", DELEGATE, user=user, arguments=("--cgroup", name)) as agent:
        return agent.subject()


def nested_namespace(machine: Machine, user: str = MEANT) -> str:
    """Ask from a pid namespace beneath the machine's."""
    return who(machine, "unshare", "--pid", "--fork", "--mount-proc", *as_user(user), *ASK)


class Agent:
    """`in_machine/agent.py` in a service of the system's manager, which lasts until the end of the block."""

    def __init__(
        self, machine: Machine, unit: str, *options: str, user: str = MEANT, arguments: tuple[str, ...] = ()
    ) -> None:
        self._machine = machine
        self._command = (*RUN, f"--unit={unit}", f"--uid={user}", *options, PYTHON, AGENT, *arguments)

    def __enter__(self) -> Agent:
        self._process: Process = self._machine.popen(*self._command, stdin=-1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=10)

    def obey(self, order: str) -> Any:
        """Have it do something."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(order, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, self._process.communicate(timeout=10)
        return json.loads(answer)

    def token(self, binding: str = "") -> str:
        """Have it ask for a token."""
        return str(self.obey(f"token {binding}".strip()))

    def subject(self) -> str:
        """Return by which rule it gets a token, or the error's code."""
        answer = self.token()
        return claims_of(answer).subject if "." in answer else answer


def test_a_unit_of_the_systems_manager(machine: Machine) -> None:
    assert system_service(machine, "agent.service") == "unit"
    assert system_service(machine, "worker@1.service") == "unit"


@pytest.mark.parametrize("unit", ["other.service", "agent.service.service", "xagent.service", "workers@1.service"])
def test_another_unit_of_the_same_user_is_not_it(machine: Machine, unit: str) -> None:
    assert system_service(machine, unit) == DENIED


def test_a_login_of_the_same_user_is_not_the_unit(machine: Machine) -> None:
    assert who(machine, *ASK, user=MEANT) == DENIED


def test_another_user_in_a_unit_of_that_name_is_not_the_rules_user(machine: Machine) -> None:
    assert system_service(machine, "agent.service", user="other") == DENIED


def test_what_a_users_own_manager_calls_like_a_service_of_the_systems_is_not_it(machine: Machine) -> None:
    assert own_service(machine, "agent.service") == DENIED
    assert own_service(machine, "worker@1.service") == DENIED
    assert own_scope(machine, "agent.service.scope") == DENIED
    assert own_scope(machine, "agent") == DENIED


def test_a_cgroup_that_a_service_makes_beneath_its_own_is_that_services(machine: Machine) -> None:
    assert nested_cgroup(machine, "agent.service") == DENIED
    with Agent(machine, "agent.service", DELEGATE, arguments=("--cgroup", "other.service")) as agent:
        assert agent.subject() == "unit"


def test_a_process_that_renames_itself_is_still_where_it_is(machine: Machine) -> None:
    with Agent(machine, "other.service", arguments=("--name", "agent.service")) as agent:
        assert agent.subject() == DENIED


def test_a_unit_of_the_users_own_manager(machine: Machine) -> None:
    assert own_service(machine, "tui.service") == "user-unit"
    assert system_service(machine, "tui.service") == DENIED
    assert own_scope(machine, "tui") == DENIED
    assert own_service(machine, "tui.service", user="other") == DENIED
    assert nested_cgroup(machine, "tui.service") == DENIED


def test_a_slice_of_the_systems_manager_and_those_in_it(machine: Machine) -> None:
    assert system_service(machine, "any.service", "--slice=bots.slice") == "slice"
    assert system_service(machine, "any.service", "--slice=bots-one.slice") == "slice"
    assert system_service(machine, "any.service", "--slice=robots.slice") == DENIED
    assert own_service(machine, "any.service", "--slice=bots.slice") == DENIED
    assert nested_cgroup(machine, "bots.slice") == DENIED


def test_a_slice_of_the_users_own_manager(machine: Machine) -> None:
    assert own_service(machine, "any.service", "--slice=desk.slice") == "user-slice"
    assert own_scope(machine, "any", "--slice=desk-left.slice") == "user-slice"
    assert system_service(machine, "any.service", "--slice=desk.slice") == DENIED


def test_a_cgroup_and_what_is_beneath_it(machine: Machine) -> None:
    assert system_service(machine, "any.service", "--slice=agents.slice") == "cgroup"
    assert in_bare_cgroup(machine, "agents.slice/bare") == "cgroup"
    assert in_bare_cgroup(machine, "agents.slicer") == DENIED
    assert nested_cgroup(machine, "agents.slice") == DENIED


def in_bare_cgroup(machine: Machine, path: str) -> str:
    """Ask from a cgroup that root has made past systemd."""
    directory = f"/sys/fs/cgroup/{path}"
    line = f'mkdir -p {directory} && echo $$ >{directory}/cgroup.procs && exec "$@"'
    return who(machine, "sh", "-c", line, "sh", *as_user(MEANT), *ASK)


def test_a_container_that_the_system_knows_of(machine: Machine) -> None:
    assert system_scope(machine, f"docker-{CONTAINER}.scope") == "container"
    assert system_scope(machine, f"docker-{CONTAINER[::-1]}.scope") == DENIED
    assert own_scope(machine, f"docker-{CONTAINER}") == DENIED
    assert nested_cgroup(machine, f"docker-{CONTAINER}.scope") == DENIED


def test_a_pid_namespace_beneath_the_brokers(machine: Machine) -> None:
    assert nested_namespace(machine) == "nested"
    assert who(machine, "unshare", "--mount", *as_user(MEANT), *ASK) == DENIED


def test_a_supplementary_group_that_the_process_has(machine: Machine) -> None:
    """As of when it was started: the group file alone says nothing about a process."""
    machine.run("gpasswd", "--add", MEANT, "robots")
    try:
        assert who(machine, *as_user(MEANT), *ASK) == "group"
        without = ("setpriv", f"--reuid={MEANT}", f"--regid={MEANT}", "--groups=gatepass", "--")
        assert who(machine, *without, *ASK) == DENIED
    finally:
        machine.run("gpasswd", "--delete", MEANT, "robots")


@contextmanager
def broker_with(machine: Machine, directives: str) -> Iterator[None]:
    """Run the broker with other directives in its unit."""
    drop_in = f"/run/systemd/system/{BROKER}.d/other.conf"
    machine.write(drop_in, f"[Service]\n{directives}\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", BROKER)
    try:
        yield
    finally:
        machine.run("rm", drop_in)
        machine.systemctl("daemon-reload")
        machine.systemctl("restart", BROKER)


@pytest.mark.parametrize("version", ["6.12", "6.4"])
def test_an_older_kernel_tells_the_same(machine: Machine, version: str) -> None:
    """As far as a filter can make a kernel older: `in_machine/older_kernel.py`."""
    command = f"{PYTHON} /srv/older_kernel.py {version} /opt/gatepass/current/bin/gatepass-broker"
    with broker_with(machine, f"ExecStart=\nExecStart={command} --config /etc/gatepass/broker.toml"):
        assert_units_are_told_apart(machine)


@pytest.mark.skipif(KERNEL < (6, 13), reason="needs Linux 6.13, which tells a process's cgroup by a pidfd")
def test_a_newer_kernel_tells_it_without_showing_other_processes(machine: Machine) -> None:
    with broker_with(machine, "ProtectProc=invisible"):
        assert_units_are_told_apart(machine)


def assert_units_are_told_apart(machine: Machine) -> None:
    """Ask from what some rules mean, and from what imitates that."""
    assert system_service(machine, "agent.service", user=MEANT_TOO) == "unit"
    assert own_service(machine, "tui.service", user=MEANT_TOO) == "user-unit"
    assert own_service(machine, "agent.service", user=MEANT_TOO) == DENIED
    assert nested_cgroup(machine, "agent.service", user=MEANT_TOO) == DENIED
    assert nested_namespace(machine, user=MEANT_TOO) == "nested"
    assert who(machine, *ASK, user=MEANT_TOO) == DENIED


@pytest.fixture(scope="module")
def proxy(machine: Machine) -> Machine:
    """The same machine with the proxy, in its own unit, in front of something that says who a request is from."""
    for unit in sorted((CHECKOUT / "systemd").glob("gatepass-gateway.*")):
        machine.write(f"/usr/local/lib/systemd/system/{unit.name}", unit.read_text())
    # Without OpenClaw, install leaves out what the proxy needs. The installer's own environment has it.
    drop_in = f"[Service]\nExecStart=\nExecStart={INSTALLER}/bin/gatepass-gateway --config /etc/gatepass/gateway.toml\n"
    machine.write("/run/systemd/system/gatepass-gateway.service.d/installer.conf", drop_in)
    owner = "root:gatepass-gateway"
    machine.write("/etc/gatepass/gateway.toml", GATEWAY.format(port=UPSTREAM_PORT), mode=0o640, owner=owner)
    behind = (PYTHON, "/srv/gateway_behind.py", str(UPSTREAM_PORT), "x-user")
    machine.run("systemd-run", "--quiet", "--unit=upstream.service", "--uid=upstream", *behind)
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "gatepass-gateway.socket", "gatepass-gateway.service")
    listening = f"ss --no-header --listening --tcp sport = :{UPSTREAM_PORT} | grep --quiet ."
    machine.wait_until(lambda: machine.shell(listening, check=False).returncode == 0, timeout=20)
    machine.wait_until(lambda: "event=keys" in machine.journal("gatepass-gateway.service"), timeout=20)
    return machine


def test_a_token_that_is_bound_to_its_unit_is_refused_from_any_other(proxy: Machine) -> None:
    with Agent(proxy, "bound.service") as first, Agent(proxy, "agent.service") as second:
        token = first.token()
        claims = claims_of(token)
        assert (claims.subject, claims.actor) == ("bound", "unit:bound.service")
        assert claims.confirmation["cgroup"] > 0
        assert first.obey(f"call {token}") == [200, "bound@example.com"]
        assert first.obey(f"child call {token}") == [200, "bound@example.com"]
        status, said = second.obey(f"call {token}")
        assert status == 401
        assert "unit" in said
        # One that is bound to its user only is good in both.
        token = second.token()
        assert first.obey(f"call {token}") == [200, "unit@example.com"]


def test_a_unit_that_was_started_again_is_another_one(proxy: Machine) -> None:
    with Agent(proxy, "bound.service") as agent:
        token = agent.token()
        assert agent.obey(f"call {token}")[0] == 200
    with Agent(proxy, "bound.service") as agent:
        assert agent.obey(f"call {token}")[0] == 401
        assert agent.obey(f"call {agent.token()}")[0] == 200


def test_a_token_that_is_bound_to_a_process_dies_with_it(proxy: Machine) -> None:
    with Agent(proxy, "agent.service") as agent:
        token = agent.obey("child token process")
        assert claims_of(token).confirmation["process"]["pid"] > 0
        assert agent.obey(f"child call {token}") == [200, "unit@example.com"]
        assert agent.obey(f"call {token}") == [200, "unit@example.com"]  # its process lives
        agent.obey("end child")
        status, said = agent.obey(f"call {token}")
        assert status == 401
        assert "process" in said
