"""What it costs to know who is calling: once for each connection, beside one Ed25519 signature in the same run.

    .venv/bin/python bench/attest.py [--seconds 1]

The first line is what can be had from the socket alone (user, groups, pidfd); the others add cgroup and pid namespace.
"""

from __future__ import annotations

import argparse
import socket
import time
from collections.abc import Callable
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gatepass_broker import peer as peer_module
from gatepass_broker import pidfd as pidfds
from gatepass_broker.peer import attest
from gatepass_broker.pidfd import boottime
from gatepass_broker.places import Place, Places

BATCH = 500
OLD_ENOUGH = 0.05


class _Nowhere(Places):
    def find(self, pidfd: int, pid: int) -> Place:
        del pidfd, pid
        return Place()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0)
    seconds = parser.parse_args().seconds
    time.sleep(OLD_ENOUGH)  # for the start time of this process to be told from now
    key, message = Ed25519PrivateKey.generate(), b"x" * 600
    signature = _microseconds(lambda: key.sign(message), seconds)
    print(f"{'Ed25519 signature alone':44} {signature:6.1f} us")
    near, far = socket.socketpair()
    with near, far:
        places, absent_at = Places.of_this_machine(), boottime()

        def once(places: Places = places) -> None:
            attest(near, places, absent_at).close()

        nowhere = _Nowhere.of_this_machine()
        without = _microseconds(lambda: once(nowhere), seconds)
        _print("user, groups and pidfd", without, without, signature)
        _print("with cgroup and namespace, Linux 6.13", _microseconds(once, seconds), without, signature)
        with patch.object(pidfds, "cgroup_id", lambda _: None):
            _print("the same, Linux 6.5", _microseconds(once, seconds), without, signature)
            with patch.object(peer_module, "_peer_pidfd", lambda _: None):
                _print("the same, before", _microseconds(once, seconds), without, signature)


def _print(kind: str, cost: float, without: float, signature: float) -> None:
    added = f"adds {(cost - without) / signature:5.2f} signatures" if cost != without else ""
    print(f"{kind:44} {cost:6.1f} us  {cost / signature:5.2f} signatures  {added}")


def _microseconds(function: Callable[[], object], seconds: float) -> float:
    """Return the best of many batches: what is slower was somebody else's time."""
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        for _ in range(BATCH):
            function()
        best = min(best, time.perf_counter() - begun)
    return best / BATCH * 1e6


if __name__ == "__main__":
    main()
