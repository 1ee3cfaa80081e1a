"""The rules stay in force against other programs of root's, and what refuses stays when their holder is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from attacks.redirect.holder_process import HolderProcess, run_command, write_configuration
from attacks.redirect.machine import (
    GAMES,
    GATEWAY_PORT,
    HOST_V4,
    PROXY,
    WWW_DATA,
    Machine,
    eventually,
    skip_reason,
)
from gatepass_gateway.redirect.nft import Nft, NftError
from gatepass_gateway.redirect.rules import GUARD, HELD
from gatepass_gateway.redirect.tables import LostError
from gatepass_gateway.redirect.watch import LOOK_SECONDS
from support.gateway import acting_as

pytestmark = pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))

OTHERS = "table inet other {\n\tchain out {\n\t\ttype filter hook output priority filter; policy accept;\n\t}\n}\n"


def dialled(machine: Machine) -> list[str]:
    """Return who takes connections of two users, root, and the proxy."""
    return [machine.dial(uid, "127.0.0.1") for uid in (GAMES, WWW_DATA, 0, PROXY)]


REDIRECTED = ["proxy", "proxy", "proxy", "gateway"]
SHUT = ["refused", "refused", "refused", "gateway"]
OPEN = ["gateway"] * 4


def guard_of(machine: Machine) -> str:
    """Return the guard's rules; nothing if there are none."""
    with machine.host.entered(), Nft() as nft:
        try:
            return nft.run(f"list table inet {GUARD}")
        except NftError:
            return ""


@pytest.mark.parametrize(
    "attempt",
    [
        "flush ruleset",
        f"delete table inet {HELD}",
        f"flush table inet {HELD}",
        f"flush chain inet {HELD} redirected",
        f"delete chain inet {HELD} leaving",
        f"insert rule inet {HELD} to_gateway accept",
        f"insert rule inet {HELD} redirected accept",
        f"add table inet {HELD} {{ flags dormant; }}",
        f"add table inet {HELD}\ndelete table inet {HELD}",
    ],
)
def test_no_other_program_takes_or_changes_the_table_that_is_held(machine: Machine, attempt: str) -> None:
    with machine.redirected() as tables:
        with machine.host.entered():
            subprocess.run(["nft", "-f", "-"], input=attempt, text=True, check=False, capture_output=True)
        assert dialled(machine) == REDIRECTED
        assert machine.dial_from_container(HOST_V4) == "refused"  # even where the guard went with it
        with machine.host.entered():
            tables.keep()


CHANGES = (
    "flush ruleset",
    f"delete table inet {GUARD}",
    f"flush chain inet {GUARD} to_gateway",
    f"insert rule inet {GUARD} to_gateway accept",
    f"add table inet {GUARD} {{ flags dormant; }}",
    f"add chain inet {GUARD} leaving {{ policy drop; }}",
    f"add chain inet {GUARD} more",
)


def test_a_guard_that_was_changed_in_whatever_way_is_made_again_at_once(machine: Machine, tmp_path: Path) -> None:
    with HolderProcess(machine, tmp_path) as holder:
        before = guard_of(machine)
        for change in CHANGES:
            changed = time.monotonic()
            machine.host.nft(change)
            eventually(lambda: guard_of(machine) == before)
            assert time.monotonic() - changed < LOOK_SECONDS / 2, f"it was not told of '{change}'"
        assert "guard_restored" in holder.log
        holder.end(signal.SIGKILL)
    assert dialled(machine) == SHUT


def test_killed_it_leaves_the_port_shut_and_started_again_redirects(machine: Machine, tmp_path: Path) -> None:
    assert dialled(machine) == OPEN
    for _ in range(2):
        with HolderProcess(machine, tmp_path) as holder:
            assert dialled(machine) == REDIRECTED
            assert machine.dial_from_container(HOST_V4) == "refused"
            assert holder.end(signal.SIGKILL) == -signal.SIGKILL
        assert dialled(machine) == SHUT
        assert machine.dial_from_container(HOST_V4) == "refused"


def test_each_start_brings_the_rules_of_its_configuration(machine: Machine, tmp_path: Path) -> None:
    for allowed, reached in ((["10.9.0.0/24"], "gateway"), ([], "refused"), (["10.9.0.2"], "gateway")):
        with HolderProcess(machine, tmp_path, allow_from=allowed) as holder:
            assert machine.dial_from_container(HOST_V4) == reached
            holder.end(signal.SIGKILL)
        assert machine.dial_from_container(HOST_V4) == reached


def test_it_is_ended_in_good_order_and_says_so(machine: Machine, tmp_path: Path) -> None:
    with HolderProcess(machine, tmp_path, watchdog_seconds=0.6) as holder:
        ready, *_ = holder.told().split("\n", 1)
        assert ready == "READY=1"
        assert [holder.told() for _ in range(3)] == ["WATCHDOG=1"] * 3
        holder.process.send_signal(signal.SIGHUP)
        eventually(lambda: "takes a restart" in holder.log)
        assert holder.end(signal.SIGTERM) == 0
        while (told := holder.told()) == "WATCHDOG=1":
            pass
        assert told.startswith("STOPPING=1")
    assert dialled(machine) == SHUT


def test_a_second_holder_is_refused_and_changes_nothing(machine: Machine, tmp_path: Path) -> None:
    with HolderProcess(machine, tmp_path, allow_from=["10.9.0.2"]):
        before = guard_of(machine)
        status, said = run_command(machine, "--config", write_configuration(tmp_path))
        assert (status, "another gatepass-redirect" in said) == (1, True), said
        assert guard_of(machine) == before
        assert machine.dial_from_container(HOST_V4) == "gateway"


def test_what_is_there_already_is_replaced_and_what_is_others_stays(machine: Machine, tmp_path: Path) -> None:
    """Of the same names, belonging to nobody: a copy that somebody has restored with all other rules."""
    machine.host.nft(OTHERS)
    machine.host.nft(f"table inet {HELD} {{ chain redirected {{ }}\n }}")
    machine.host.nft(f"table inet {GUARD} {{ chain leaving {{ tcp dport 1 accept; }}\n }}")
    with HolderProcess(machine, tmp_path) as holder:
        assert dialled(machine) == REDIRECTED
        machine.host.nft(f"flush table inet {GUARD}")
        eventually(lambda: "guard_restored" in holder.log)
        holder.end(signal.SIGTERM)
    assert machine.host.nft("list table inet other") == OTHERS
    assert machine.host.nft("list tables").split() == ["table", "inet", "other", "table", "inet", GUARD]


def test_the_guard_is_removed_when_that_is_asked_for_and_nobody_holds_the_rules(
    machine: Machine, tmp_path: Path
) -> None:
    with HolderProcess(machine, tmp_path):
        status, said = run_command(machine, "--remove")
        assert (status, "stop it first" in said) == (1, True), said
        assert dialled(machine) == REDIRECTED
    assert dialled(machine) == SHUT
    for _ in range(2):
        assert run_command(machine, "--remove") == (0, "")
        assert dialled(machine) == OPEN


def test_a_table_that_is_lost_all_the_same_is_an_error(machine: Machine) -> None:
    """Nobody can do this from outside: the socket that owns it is closed here."""
    with machine.redirected() as tables, machine.host.entered():
        tables._holder.close()
        with pytest.raises(LostError):
            tables.keep()


def test_not_to_be_let_look_is_not_taken_for_a_loss(machine: Machine) -> None:
    with machine.redirected() as tables, machine.host.entered():
        with acting_as(WWW_DATA), pytest.raises(NftError) as caught:
            tables.keep()
        assert caught.value.is_forbidden
        assert not tables.keep()


def test_a_storm_of_changes_costs_little(machine: Machine, tmp_path: Path) -> None:
    with HolderProcess(machine, tmp_path) as holder:
        ticks_before = _ticks(holder.process.pid)
        with machine.host.entered(), Nft() as nft:
            limit = time.monotonic() + 1
            changes = 0
            while time.monotonic() < limit:
                nft.run("add table inet storm\nadd chain inet storm x\ndelete table inet storm")
                changes += 1
        used = (_ticks(holder.process.pid) - ticks_before) / os.sysconf("SC_CLK_TCK")
        assert changes > 100
        assert used < 0.3, f"{used} s of a second, for {changes} changes"
        machine.host.nft("flush ruleset")
        eventually(lambda: "guard_restored" in holder.log)


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


# What it may and may not.


def test_the_capability_for_the_network_is_enough_and_no_memory_becomes_code(machine: Machine, tmp_path: Path) -> None:
    """As under AmbientCapabilities=CAP_NET_ADMIN and MemoryDenyWriteExecute=."""
    refuse_gain = "import ctypes, os, sys; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
    before = ["setpriv", "--bounding-set=-all,+net_admin", "/usr/bin/env", "python3", "-c", refuse_gain]
    with HolderProcess(machine, tmp_path, before=before) as holder:
        status = Path(f"/proc/{holder.process.pid}/status").read_text()
        assert f"CapEff:\t{1 << 12:016x}" in status
        machine.host.nft("flush ruleset")
        eventually(lambda: "guard_restored" in holder.log)
        assert dialled(machine) == REDIRECTED


def test_without_the_capability_it_says_which_is_missing(machine: Machine, tmp_path: Path) -> None:
    config = write_configuration(tmp_path)
    status, said = run_command(machine, "--config", config, before=["setpriv", "--bounding-set=-net_admin"])
    assert (status, "CAP_NET_ADMIN" in said) == (1, True), said


def test_without_the_library_it_says_what_to_install(machine: Machine, tmp_path: Path) -> None:
    with machine.redirected():  # loads it
        lines = Path("/proc/self/maps").read_text().splitlines()
    library = next(line.split()[-1] for line in lines if "libnftables" in line)
    hide = ["unshare", "--mount", "sh", "-c", f'mount --bind /dev/null {library} && exec "$@"', "sh"]
    status, said = run_command(machine, "--config", write_configuration(tmp_path), before=hide)
    assert (status, "apt-get install nftables" in said) == (6, True), said


def test_the_rules_are_shown_and_checked_without_any_privilege(machine: Machine, tmp_path: Path) -> None:
    config = write_configuration(tmp_path, allow_from=["10.9.0.2"])
    nothing = ["setpriv", "--bounding-set=-all"]
    status, shown = run_command(machine, "--config", config, "--print", before=nothing)
    assert status == 0
    machine.host.nft(shown.replace("flags owner", ""))
    assert dialled(machine) == REDIRECTED
    status, said = run_command(machine, "--config", config, "--check", before=nothing)
    assert (status, f"port {GATEWAY_PORT}" in said) == (0, True), said
