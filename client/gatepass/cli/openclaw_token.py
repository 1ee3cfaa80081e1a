"""The part of `gatepass openclaw secret` that may fail: whether there is a token to give, and which."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Final

from gatepass.cli.options import Parser, add_wanted, command_parser
from gatepass.client import Client
from gatepass.openclaw import AskedByGatewayError
from gatepass.openclaw_caller import ancestors, asked_by_gateway

SHORTEST_TIMEOUT: Final = 0.1
"""Seconds that the broker gets even if OpenClaw was slow to write its request."""

_EXAMPLES: Final = """\
  In OpenClaw's configuration, where 'command' is a launcher that belongs to the user who runs OpenClaw:
    secrets.providers.gatepass: {source: "exec", command: "/home/alice/.openclaw/gatepass-secret", jsonOnly: true,
                                 passEnv: ["HOME", "XDG_RUNTIME_DIR", "OPENCLAW_GATEWAY_PORT"]}
    gateway.auth.password:      {source: "exec", provider: "gatepass", id: "gateway/password"}
  By hand, to see what it answers to anybody but an OpenClaw command:
    echo '{"protocolVersion":1,"provider":"gatepass","ids":["x"]}' | gatepass openclaw secret"""


def command_line() -> Parser:
    """Return the parser of the command's options."""
    parser = command_parser(
        "openclaw secret",
        "Answer OpenClaw's exec-secret protocol on standard input and output. Always exits with 0: without a token\n"
        "the answer is a secret that cannot log in, 'gatepass-none.REASON.RANDOM', and standard error says why.\n"
        "The OpenClaw gateway itself, as opposed to its commands, never gets a token.",
        _EXAMPLES,
    )
    add_wanted(parser)
    return parser


def token_for_command(arguments: Sequence[str], give_up_at: float) -> str:
    """Return a token for the OpenClaw command that started this process.

    `give_up_at` is a time of `time.monotonic`. Raise `AskedByGatewayError`, `SystemExit` for wrong options, and what
    `Client.issue` raises.
    """
    if asked_by_gateway(ancestors(), os.environ):
        raise AskedByGatewayError
    options = command_line().parse_args(arguments)
    timeout = max(SHORTEST_TIMEOUT, min(options.timeout, give_up_at - time.monotonic()))
    with Client(options.socket, timeout) as client:
        return client.issue(options.audience, options.scope, options.ttl).token
