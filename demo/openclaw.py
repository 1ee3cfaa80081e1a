"""The demo on an unmodified OpenClaw behind the gatepass proxy: what the end-to-end tests run, to be looked at."""

from __future__ import annotations

import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from demo.calls import Call, Place, over_both
from demo.processes import DemoError
from demo.rows import Expected, Outcome, Outcomes, Row, sentence_of
from demo.stage import ALICE, FORWARDED, Stage, row
from demo.tokens import Token, placeholder, tampered
from e2e.openclaw_config import USER, Config
from e2e.openclaw_install import InstallError, OpenClawInstall, ensure_openclaw
from e2e.openclaw_instance import Account
from e2e.stack import GatepassInstall, Stack

_SCOPES: Final = "operator.read operator.write"
_LOGIN: Final = r"authenticated user connected .*user=(\S+)"
_LOG_SECONDS: Final = 5
_REVERSE_PROXY: Final = "www-data"

_NEXT: Final = """\
Next:
  README.md                   your own OpenClaw
  tests/e2e/                  all of this, and more, as tests: make e2e"""


class _DemoStack(Stack):
    """The tests' chain, with a reverse proxy before it, which takes a second user."""

    def __init__(self, gatepass: GatepassInstall, openclaw: OpenClawInstall) -> None:
        self.reverse_proxy = Account.named(_REVERSE_PROXY) if os.geteuid() == 0 else None
        super().__init__(gatepass, openclaw)

        if self.reverse_proxy:
            self.setup_options = ("--reverse-proxy", _REVERSE_PROXY)

    def _before_setup(self) -> Config:
        """Return the configuration of somebody who has a reverse proxy, which lets its user in."""
        config = super()._before_setup()
        header = f"x-user-{secrets.token_hex(16)}"
        config["gateway"]["auth"]["trustedProxy"] = {"userHeader": header, "allowUsers": [ALICE]}
        return config


@contextmanager
def behind_the_proxy() -> Iterator[Stage]:
    """Install what is missing, and start everything for the time of the block."""
    try:
        install = ensure_openclaw()
    except InstallError as error:
        raise DemoError(str(error)) from error
    with tempfile.TemporaryDirectory(prefix="gatepass-demo-") as name, ExitStack() as parts:
        Path(name).chmod(0o755)  # for the users that the commands run as
        _say("installing this checkout as a wheel ...")
        stack = _stack(GatepassInstall(Path(name)), install)
        _say("starting OpenClaw, which takes it ten seconds ...")
        parts.enter_context(stack)
        yield Stage(_explanation(stack), _rows(stack), _NEXT)


def _stack(gatepass: GatepassInstall, install: OpenClawInstall) -> _DemoStack:
    try:
        return _DemoStack(gatepass, install)
    except KeyError as error:
        raise DemoError(f"as root this takes the accounts that every Debian has: {error.args[0]}") from None


def _rows(stack: _DemoStack) -> Iterator[Row]:
    """The rows in their order: what must have happened before a row happens when it is taken."""
    row_of, refused, owner = partial(row, partial(_call, stack)), partial(Expected, None), stack.owner
    good, elsewhere = stack.token(None, "--scope", _SCOPES), stack.token(None, "--audience", "elsewhere")
    brief = Token(stack.token(None, "--ttl", "1"), time.monotonic() + 1)
    says_alice = {stack.user_header: ALICE}

    by_proxy = Call(stack.reverse_proxy, FORWARDED | says_alice) if stack.reverse_proxy else None
    yield row_of("reverse proxy, for alice", Expected(ALICE), by_proxy)
    yield row_of("bare loopback call", refused(401), Call(owner))
    yield row_of("forged identity header", refused(403, "identity_forged"), Call(owner, says_alice))
    yield Row("CLI: openclaw cron list", Expected(USER), partial(_cron_list, stack))
    yield row_of("a client with a token", Expected(USER), Call(owner, secret=good))
    yield row_of("token for another audience", refused(401, "token_wrong_audience"), Call(owner, secret=elsewhere))
    brief.wait_for_end()
    yield row_of("expired token", refused(401, "token_expired"), Call(owner, secret=brief.text))
    forged = tampered(good, {"sub": ALICE})
    yield row_of("token changed to say alice", refused(401, "token_bad_signature"), Call(owner, secret=forged))
    by_other = None if stack.nobody == owner else Call(stack.nobody, secret=good)
    yield row_of("token shown by another uid", refused(401, "token_wrong_uid"), by_other)
    stack.broker.stop()
    yield Row("broker stopped: the CLI", refused(401, "no_token"), partial(_cron_list, stack))
    yield row_of(
        "broker stopped: no token", refused(401, "no_token"), Call(owner, secret=placeholder(str(stack.socket)))
    )
    yield row_of("broker stopped: old token", Expected(USER), Call(owner, secret=good))


def _call(stack: Stack, call: Call) -> Outcomes:
    offset = len(stack.openclaw.log_text())
    outcomes = over_both(Place(stack.port, "/v1/models"), call)
    if outcomes.websocket is None or not outcomes.websocket.accepted:
        return outcomes
    user = _logged_user(stack, offset)
    sentence = ": ".join(filter(None, (user, outcomes.websocket.sentence)))
    return Outcomes(
        outcomes.http and outcomes.http._replace(sentence=outcomes.http.sentence or sentence),
        outcomes.websocket._replace(user=user, sentence=sentence),
    )


def _cron_list(stack: Stack) -> Outcomes:
    """Run OpenClaw's own CLI, which logs in over a WebSocket."""
    offset = len(stack.openclaw.log_text())
    done = stack.openclaw.cli("cron", "list")
    if done.returncode == 0:
        user = _logged_user(stack, offset)
        return Outcomes(websocket=Outcome(True, "in", user, None, user))
    found = re.search(r"\(gatepass: (.*)\)", done.stdout + done.stderr)
    said = found[1] if found else f"it exits with {done.returncode}: {done.stderr}"
    code = "no_token" if said.startswith("no token was issued") else None
    return Outcomes(websocket=Outcome(False, "refused", None, code, sentence_of(said)))


def _logged_user(stack: Stack, offset: int) -> str:
    """Return whom OpenClaw's own log names: its answers do not say."""
    return stack.openclaw.wait_for_log(_LOGIN, _LOG_SECONDS, offset)[1]


def _explanation(stack: _DemoStack) -> str:
    proxy = "takes the identity header from nobody: that would take a second user"
    if stack.reverse_proxy:
        proxy = f"takes the identity header from {_REVERSE_PROXY} ({stack.reverse_proxy.uid}) only"
    return f"""\
gatepass demo: who gets in at an unmodified OpenClaw {stack.openclaw.install.version}, and as whom

  broker        gatepass-broker on {stack.socket}
                gives uid {stack.owner.uid}, who runs OpenClaw and its CLI, short-lived tokens of {USER}
  proxy         gatepass-gateway on 127.0.0.1:{stack.port}, where clients dial
                {proxy}
  OpenClaw      on 127.0.0.1:{stack.upstream_port}, in trusted-proxy mode

Each row is sent as an HTTP request and as a WebSocket login, by a process of the user in question."""


def _say(message: str) -> None:
    """Progress, on stderr: stdout carries the result only."""
    print(f"gatepass demo: {message}", file=sys.stderr, flush=True)
