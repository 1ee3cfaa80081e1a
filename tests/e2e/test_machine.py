"""The machines that the tests boot are as real as the tests need them, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.machine import Machine, MachineError, needs_machine
from e2e.openclaw_install import OpenClawInstall

pytestmark = [*needs_machine, pytest.mark.timeout(600, method="signal")]  # the first run fetches what is booted

TESTS = Path(__file__).resolve().parents[1]

LISTEN = """
import socket
listener = socket.create_server(("127.0.0.1", 8000))
print("ready", flush=True)
while True:
    listener.accept()
"""
CONNECT = "import socket; socket.create_connection(('127.0.0.1', 8000), 0.5)"
"""An exit status of 0 if it is possible."""


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def machine(request: pytest.FixtureRequest, openclaw_install: OpenClawInstall) -> Iterator[Machine]:
    with Machine(request.param, openclaw=openclaw_install) as machine:
        machine.boot()
        machine.add_user("derek", linger=True)
        yield machine


def test_a_command_is_in_the_session_of_its_user_with_the_groups_of_now(machine: Machine) -> None:
    machine.run("groupadd", "--force", "late")
    machine.run("usermod", "--append", "--groups=late", "derek")
    said = machine.shell("grep ^0:: /proc/self/cgroup; id --user --name; id --groups --name; echo $HOME", user="derek")
    assert said.stdout.split() == [
        "0::/user.slice/user-1000.slice/session-e2e-1000.scope",
        *("derek", "derek", "late", "/home/derek"),
    ]
    assert machine.run("cat", stdin="from here", env={"LANG": "C"}).stdout == "from here"


def test_a_failure_and_a_command_without_end_are_told(machine: Machine) -> None:
    with pytest.raises(MachineError, match=r"failed \(3\)[^$]*no such luck"):
        machine.shell("echo no such luck; exit 3")
    with pytest.raises(MachineError, match=r"took over 0.5 s; it said:\nso far"):
        machine.shell("echo so far; sleep 1234", timeout=0.5)
    assert machine.run("pgrep", "--full", "sleep 1234", check=False).stdout == ""


def test_signals_reach_the_command_itself(machine: Machine) -> None:
    process = machine.popen("sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done", user="derek")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(5) == 7
    killed = machine.popen("sleep", "infinity")
    killed.kill()
    assert killed.wait(5) == -signal.SIGKILL


def test_files_are_written_with_mode_and_owner(machine: Machine) -> None:
    machine.write("/etc/made/here.conf", "said\n", mode=0o640, owner="derek")
    assert machine.read("/etc/made/here.conf") == "said\n"
    assert machine.run("stat", "--format=%a %U %G", "/etc/made/here.conf").stdout == "640 derek derek\n"


def test_a_unit_that_is_denied_all_addresses_reaches_none(machine: Machine) -> None:
    listening = machine.popen("python3", "-c", LISTEN)
    assert listening.stdout is not None
    assert listening.stdout.readline() == "ready\n"
    connect = ("systemd-run", "--quiet", "--wait", "--pipe", "--collect")
    machine.run(*connect, "python3", "-c", CONNECT)
    denied = machine.run(*connect, "--property=IPAddressDeny=any", "python3", "-c", CONNECT, check=False)
    assert denied.returncode == 1
    assert "TimeoutError" in denied.stderr or "PermissionError" in denied.stderr
    listening.kill()


def test_an_nftables_table_belongs_to_the_process_that_made_it(machine: Machine) -> None:
    holder = machine.popen("nft", "--interactive", stdin=subprocess.PIPE)
    assert holder.stdin is not None
    print("add table inet held { flags owner; }", file=holder.stdin, flush=True)
    machine.wait_until(lambda: "inet held" in machine.run("nft", "list", "tables").stdout)
    machine.run("nft", "flush", "ruleset")
    assert machine.run("nft", "delete", "table", "inet", "held", check=False).returncode != 0
    assert "inet held" in machine.run("nft", "list", "tables").stdout
    holder.kill()
    machine.wait_until(lambda: "inet held" not in machine.run("nft", "list", "tables").stdout)


def test_a_user_has_a_service_manager(machine: Machine) -> None:
    machine.run(
        "systemd-run", "--user", "--quiet", "--unit=mine", "sh", "-c", "echo hello; exec sleep 60", user="derek"
    )
    assert machine.property("mine.service", "ActiveState", user="derek") == "active"
    assert "hello" in machine.journal("mine.service", user="derek")
    machine.systemctl("stop", "mine.service", user="derek")


def test_a_credential_is_encrypted_for_the_machine(machine: Machine) -> None:
    machine.run("systemd-creds", "encrypt", "--with-key=host", "--name=seed", "-", "/etc/seed.cred", stdin="a seed")
    assert machine.run("systemd-creds", "decrypt", "--name=seed", "/etc/seed.cred", "-").stdout == "a seed"


def test_a_container_behind_a_bridge_reaches_the_machines_own_addresses(machine: Machine) -> None:
    with machine.bridge_container() as container:
        assert container.namespace.exists()
        for address in ("192.0.2.10", "2001:db8::10", container.host_address, container.host_address6):
            server = f"import socket; socket.create_server(('{address}', 8001), family=FAMILY).accept()"
            family = "socket.AF_INET6" if ":" in address else "socket.AF_INET"
            listening = machine.popen("python3", "-c", server.replace("FAMILY", family))
            machine.wait_until(lambda: ":8001" in machine.run("ss", "--listening", "--tcp", "--numeric").stdout)
            connect = f"import socket; print(socket.create_connection(('{address}', 8001), 2).getsockname()[0])"
            expected = container.address6 if ":" in address else container.address
            assert container.run("python3", "-c", connect).stdout.strip() == expected
            assert listening.wait(5) == 0
    assert "bridge0" not in machine.run("ip", "-brief", "link").stdout


def test_gatepass_can_be_installed_and_openclaw_run(machine: Machine, openclaw_install: OpenClawInstall) -> None:
    machine.run("python3", "-m", "venv", "/srv/venv", timeout=60)
    pip = ("/srv/venv/bin/pip", "install", "--quiet", "--no-index", f"--find-links={machine.wheels}")
    machine.run(*pip, "gatepass[all]", timeout=120)
    assert "gatepass" in machine.run("/srv/venv/bin/gatepass", "--help", user="derek").stdout
    openclaw = (str(openclaw_install.node), str(openclaw_install.entry))
    assert openclaw_install.version in machine.run(*openclaw, "--version", user="derek").stdout
    assert machine.run("touch", f"{openclaw_install.entry}", check=False).returncode != 0


def test_nginx_can_ask_another_service(machine: Machine) -> None:
    assert "http_auth_request_module" in machine.run("nginx", "-V").stderr
    assert machine.property("nginx.service", "ActiveState") == "inactive"


# These two boot again, so they come last on each machine.


def test_a_second_boot_finds_what_the_first_one_wrote(machine: Machine) -> None:
    machine.write("/etc/kept", "kept\n")
    first = machine.run("cat", "/etc/machine-id", "/proc/sys/kernel/random/boot_id").stdout.split()
    pid = machine.pid
    assert machine.stop()
    assert not Path(f"/proc/{pid}").exists()
    machine.boot()
    assert machine.read("/etc/kept") == "kept\n"
    second = machine.run("cat", "/etc/machine-id", "/proc/sys/kernel/random/boot_id").stdout.split()
    assert second[0] == first[0]
    assert second[1] != first[1]
    assert machine.systemctl("is-system-running", user="derek").stdout == "running\n"
    assert "192.0.2.10/24" in machine.run("ip", "-brief", "address").stdout


def test_a_boot_that_fails_names_the_unit(machine: Machine) -> None:
    # The boot is not over before it has failed.
    broken = "[Service]\nType=oneshot\nExecStart=false\n[Install]\nWantedBy=multi-user.target\n"
    machine.write("/etc/systemd/system/broken.service", broken)
    machine.systemctl("enable", "broken.service")
    pid = machine.pid
    assert not machine.stop(timeout=0)
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(MachineError, match=r"degraded:[^$]*failed units: broken.service"):
        machine.boot()
    machine.boot(wanted=["degraded"])
    assert machine.property("broken.service", "Result") == "exit-code"


def test_a_boot_that_does_not_come_to_an_end_names_the_unit() -> None:
    slow = "[Service]\nType=oneshot\nExecStart=sleep 100\n[Install]\nWantedBy=basic.target\n"
    with Machine("bookworm") as machine:
        machine.boot()
        machine.write("/etc/systemd/system/slow.service", slow)
        machine.systemctl("enable", "slow.service")
        machine.stop(timeout=0)
        with pytest.raises(MachineError, match=r"starting:[^$]*jobs:[^$]*slow.service"):
            machine.boot(timeout=3)


def test_two_machines_run_at_once_and_know_nothing_of_each_other() -> None:
    with Machine("bookworm", hostname="one") as one, Machine("trixie", hostname="two") as two:
        one.boot()
        two.boot()
        one.write("/etc/here", "")
        assert two.run("test", "-e", "/etc/here", check=False).returncode == 1
        assert (one.run("hostname").stdout, two.run("hostname").stdout) == ("one\n", "two\n")
        assert one.pid != two.pid
        assert one.read("/etc/machine-id") != two.read("/etc/machine-id")
        assert one.stop()
        assert two.run("systemctl", "is-system-running").stdout == "running\n"


def test_nothing_is_left_when_the_test_is_killed() -> None:
    source = """
import sys, time
from e2e.machine import Machine
with Machine("bookworm") as machine:
    machine.boot()
    machine.popen("sleep", "infinity")
    print(machine.pid, machine.directory, flush=True)
    time.sleep(600)
"""
    command = [sys.executable, "-c", source]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as test:
        assert test.stdout is not None
        pid, directory = test.stdout.readline().split()
        assert Path(f"/proc/{pid}").exists()
        assert _cgroup_exists(Path(directory).name)
        test.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() or Path(directory).exists():
        assert time.monotonic() < deadline, "the machine is still there"
        time.sleep(0.05)
    assert not _cgroup_exists(Path(directory).name)
    assert directory not in Path("/proc/self/mountinfo").read_text()


def _cgroup_exists(name: str) -> bool:
    look = 'mount -t cgroup2 cgroup2 /mnt && test -d "/mnt/$1"'
    return subprocess.run(["unshare", "--mount", "sh", "-c", look, "sh", name], check=False).returncode == 0
