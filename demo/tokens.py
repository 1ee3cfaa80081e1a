"""Tokens as the demo's callers get them, and what an attacker makes of one."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from demo.processes import DemoError, command
from gatepass.openclaw import RANDOM_BYTES, no_token
from gatepass.tokens import b64decode, b64encode

UNREACHABLE: Final = 5
"""The exit status of `gatepass` where no broker runs."""


class Token(NamedTuple):
    """What `gatepass token` printed, and when that ends on the monotonic clock, at the latest."""

    text: str
    ends_at: float

    def wait_for_end(self) -> None:
        """Wait until it has expired."""
        time.sleep(max(0.0, self.ends_at - time.monotonic()))


def issue(socket: str, *options: str) -> Token:
    """Run `gatepass token`. Raise `DemoError` if it has none to give."""
    # A broker that is just starting is waited for: the client does that by itself.
    done = _gatepass_token(socket, "--json", "--timeout", "20", *options)
    if done.returncode != 0:
        raise DemoError(f"no token was issued: {done.stderr.strip()}")
    issued: dict[str, Any] = json.loads(done.stdout)
    return Token(issued["token"], time.monotonic() + issued["expires_in"])


def placeholder(socket: str) -> str:
    """Return what OpenClaw's CLI would log in with while the broker is down. Raise `DemoError` if it is not.

    `gatepass openclaw secret` gives that to OpenClaw only, so it is made here, of what `gatepass token` finds.
    """
    done = _gatepass_token(socket, "--timeout", "0.5")
    if done.returncode != UNREACHABLE:
        raise DemoError(f"'gatepass token' exits with {done.returncode} where no broker runs, not with {UNREACHABLE}")
    return no_token("unreachable", os.urandom(RANDOM_BYTES))


def tampered(token: str, changes: Mapping[str, str]) -> str:
    """Return the token with other claims under the same signature."""
    header, payload, signature = token.split(".")
    claims = json.loads(b64decode(payload)) | changes
    return f"{header}.{b64encode(json.dumps(claims, separators=(',', ':')).encode())}.{signature}"


def _gatepass_token(socket: str, *options: str) -> subprocess.CompletedProcess[str]:
    arguments = [command("gatepass"), "token", "--socket", socket, *options]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)
