"""A program that asks for tokens and shows them to the proxy, as it is told to. Run by a test inside a booted machine.

    python agent.py [--cgroup NAME] [--name NAME]

Takes one order a line and answers each with one line of JSON:

    token [BINDING]     asks the broker; answers the token, or the error's code
    call TOKEN          sends a request with it to the proxy; answers its status and body
    child ORDER         has a child process do it, which is started for the first
    end child           ends that

With `--cgroup` it moves into a cgroup of that name that it makes beneath its own; with `--name` it goes by that name.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
from pathlib import Path

from gatepass import Client, GatepassError

PROXY = ("127.0.0.1", 789)
SECONDS = 10.0


class Agent:
    """Does what it is told."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None

    def obey(self, order: str) -> object:
        """Return the answer to an order."""
        what, _, rest = order.partition(" ")
        match what:
            case "token":
                return _token(rest or None)
            case "call":
                return _call(rest)
            case "child":
                return self._delegate(rest)
            case "end":
                return self._end_child()
        raise ValueError(order)

    def _delegate(self, order: str) -> object:
        if self._child is None:
            command = (sys.executable, __file__)
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        print(order, file=self._child.stdin, flush=True)
        return json.loads(self._child.stdout.readline())

    def _end_child(self) -> object:
        assert self._child is not None
        self._child.communicate()
        self._child = None
        return "ended"


def _token(binding: str | None) -> str:
    try:
        with Client() as client:
            return client.issue(binding=binding).token
    except GatepassError as error:
        return error.code


def _call(token: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(*PROXY, timeout=SECONDS)
    connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def _own_cgroup() -> Path:
    (line,) = (line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    return Path("/sys/fs/cgroup") / line.removeprefix("0::/")


def _move_into(name: str) -> None:
    nested = _own_cgroup() / name
    nested.mkdir()
    (nested / "cgroup.procs").write_text("0")


def main() -> None:
    """Obey until there are no more orders."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cgroup")
    parser.add_argument("--name")
    options = parser.parse_args()
    if options.cgroup:
        _move_into(options.cgroup)
    if options.name:
        Path("/proc/self/comm").write_text(options.name)
    agent = Agent()
    for line in sys.stdin:
        print(json.dumps(agent.obey(line.strip())), flush=True)


if __name__ == "__main__":
    main()
