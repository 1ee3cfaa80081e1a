"""Many clients that ask for tokens until SIGTERM. Run by a test inside a booted machine.

    python ask_in_a_loop.py CLIENTS

Prints one JSON object: how many requests were answered, and what went wrong. Leaves a few of the tokens in a file.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

from gatepass.aio import AsyncClient

PATIENCE = 30.0


class Findings:
    """What the clients saw."""

    def __init__(self) -> None:
        self.answers = 0
        self.faults: list[str] = []
        self.seen: set[str] = set()
        self.tokens: list[str] = []

    def look_at(self, token: str) -> None:
        """Check that the token is the caller's own, and no answer to somebody else's request."""
        body = token.split(".")[1]
        claims: dict[str, Any] = json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        self.answers += 1
        if claims["cnf"]["uid"] != os.getuid() or claims["jti"] in self.seen:
            self.faults.append(f"a wrong answer: {claims}")
        self.seen.add(claims["jti"])
        if self.answers % 500 == 1:
            self.tokens.append(token)


async def ask(findings: Findings, enough: asyncio.Event) -> None:
    """Be one client, whose every request must succeed in the end."""
    async with AsyncClient(timeout=PATIENCE) as client:
        while not enough.is_set():
            try:
                findings.look_at((await client.issue()).token)
            except Exception as error:  # noqa: BLE001 - told to the test
                findings.faults.append(repr(error))
            await asyncio.sleep(0.02)


async def ask_all(findings: Findings, clients: int) -> None:
    """Run all clients."""
    enough = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, enough.set)
    await asyncio.gather(*(ask(findings, enough) for _ in range(clients)))


def main(clients: int) -> None:
    """Run all clients, and say what they saw. The tokens go to a file that only this user can read."""
    findings = Findings()
    asyncio.run(ask_all(findings, clients))
    kept = Path(f"/tmp/tokens-{os.getuid()}")
    kept.touch(mode=0o600)
    kept.write_text("\n".join(findings.tokens))
    print(json.dumps({"answers": findings.answers, "faults": findings.faults[:10]}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
