"""How many tokens a broker issues, and how long one takes, beside what the signature alone costs in the same run.

    .venv/bin/python bench/broker_issue.py [--seconds 2] [--clients 4]

The clients are Python too and share the machine's cores: the rates are no ceiling. Compare only within one run.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gatepass import Client

START_SECONDS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    signature = _signature_microseconds()
    print(f"{'Ed25519 signature alone':42} {signature:8.0f} us")
    for loop in ("asyncio", "uvloop"):
        with tempfile.TemporaryDirectory() as directory, _broker(Path(directory), loop) as socket:
            for kind, function in (("one connection", _persistent), ("a connection each", _fresh)):
                latencies = sorted(function(socket, options.seconds))
                median, slow = statistics.median(latencies) * 1e6, latencies[int(len(latencies) * 0.99)] * 1e6
                cost = f"{median:8.0f} us  p99 {slow:6.0f}  {median / signature:5.1f} signatures"
                print(f"{f'{loop}, 1 client, {kind}':42} {cost}")
                rate = _rate(function, socket, options.seconds, options.clients)
                share = rate * signature / 1e6
                print(
                    f"{f'{loop}, {options.clients} clients, {kind}':42} {rate:8.0f} per s  {share:5.0%} of a core signs"
                )


class _broker:  # noqa: N801 - used as a function
    """A broker process of this user's own."""

    def __init__(self, directory: Path, loop: str) -> None:
        self._socket = directory / "broker.sock"
        self._command = [
            *(sys.executable, "-m", "gatepass_broker", "--loopback-user", "bench@example.com", "--loop", loop),
            *("--socket", str(self._socket), "--state-dir", str(directory / "state")),
        ]

    def __enter__(self) -> str:
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while not self._socket.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return str(self._socket)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


def _persistent(socket: str, seconds: float) -> list[float]:
    with Client(socket) as client:
        return _repeat(client.issue, seconds)


def _fresh(socket: str, seconds: float) -> list[float]:
    def one() -> None:
        with Client(socket) as client:
            client.issue()

    return _repeat(one, seconds)


def _repeat(function: Callable[[], object], seconds: float) -> list[float]:
    latencies, end = [], time.perf_counter() + seconds
    while (before := time.perf_counter()) < end:
        function()
        latencies.append(time.perf_counter() - before)
    return latencies


def _rate(function: Callable[[str, float], list[float]], socket: str, seconds: float, clients: int) -> float:
    with get_context("fork").Pool(clients) as pool:
        counts = pool.starmap(_count, [(function, socket, seconds)] * clients)
    return sum(counts) / seconds


def _count(function: Callable[[str, float], list[float]], socket: str, seconds: float) -> int:
    return len(function(socket, seconds))


def _signature_microseconds() -> float:
    key, data = Ed25519PrivateKey.generate(), b"x" * 600
    return statistics.median(_repeat(lambda: key.sign(data), 1.0)) * 1e6


if __name__ == "__main__":
    main()
