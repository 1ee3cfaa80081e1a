"""The demo on a gateway of its own: a personal broker, `embedded_gateway.py`, and whoever calls it."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from demo.calls import Call, Place, over_both
from demo.embedded_gateway import AUDIENCE, LOOPBACK_USER, SCOPES, USER_HEADER
from demo.processes import command, first_line, running, stop
from demo.rows import Expected, Row
from demo.stage import ALICE, FORWARDED, Stage, row
from demo.tokens import issue, placeholder, tampered
from e2e.openclaw_instance import Account

# Every Linux has these two accounts (Linux Standard Base), and here neither owns anything.
_PROXY_ACCOUNT: Final = "daemon"
_OTHER_ACCOUNT: Final = "bin"

_NEXT: Final = """\
Next:
  make demo OPENCLAW=1        the same with an unmodified OpenClaw, installed from npm into a cache
  demo/embedded_gateway.py    how a gateway in Python takes these tokens itself
  README.md                   your own OpenClaw"""


class _Cast(NamedTuple):
    """Who is who. Without root there is only one user."""

    me: Account
    proxy: Account
    other: Account | None

    @classmethod
    def here(cls) -> _Cast:
        me = Account(os.geteuid(), os.getegid())
        if me.uid != 0:
            return cls(me, me, None)
        return cls(me, Account.named(_PROXY_ACCOUNT), Account.named(_OTHER_ACCOUNT))


@contextmanager
def embedded() -> Iterator[Stage]:
    """Start everything for the time of the block."""
    cast = _Cast.here()
    with tempfile.TemporaryDirectory(prefix="gatepass-demo-") as name:
        directory = Path(name)
        socket = str(directory / "broker.sock")
        with (
            running(_broker_command(socket, directory), directory / "broker.log") as broker,
            _gateway(socket, directory / "gateway.log", cast.proxy if cast.other else None) as place,
            _proxys_gateway(place, socket, directory / "proxys-gateway.log", cast) as proxys_place,
        ):
            rows = _rows(cast, socket, broker, place, proxys_place)
            yield Stage(_explanation(cast, socket, place, proxys_place), rows, _NEXT)


def _broker_command(socket: str, directory: Path) -> list[str]:
    options = ["--loopback-user", LOOPBACK_USER, "--socket", socket, "--state-dir", str(directory / "state")]
    grants = [*(f"--audience={name}" for name in (AUDIENCE, "elsewhere")), *(f"--scope={name}" for name in SCOPES)]
    return [command("gatepass-broker"), *options, *grants]


@contextmanager
def _gateway(socket: str, log: Path, proxy: Account | None) -> Iterator[Place]:
    """Run a gateway that believes the identity header of `proxy` only."""
    arguments = [sys.executable, "-m", "demo.embedded_gateway", "--broker-socket", socket]
    proxy_option = [f"--reverse-proxy-uid={proxy.uid}"] if proxy else []
    with running([*arguments, *proxy_option], log) as process:
        yield Place(int(first_line(process, log)), "/", (("whoami", {}),))


@contextmanager
def _proxys_gateway(place: Place, socket: str, log: Path, cast: _Cast) -> Iterator[Place]:
    """Give the gateway that the reverse proxy calls: the same, unless everybody here is the same user."""
    if cast.other:
        yield place
        return
    with _gateway(socket, log, cast.proxy) as proxys_place:
        yield proxys_place


def _rows(cast: _Cast, socket: str, broker: subprocess.Popen[str], place: Place, proxys_place: Place) -> Iterator[Row]:
    """The rows in their order: what must have happened before a row happens when it is taken."""
    row_of, refused, me = partial(row, partial(over_both, place)), partial(Expected, None), cast.me
    good, elsewhere = issue(socket), issue(socket, "--audience", "elsewhere")
    brief = issue(socket, "--ttl", "1")
    says_alice = {USER_HEADER: ALICE}

    by_proxy = Call(cast.proxy, FORWARDED | says_alice)
    yield row(partial(over_both, proxys_place), "reverse proxy, for alice", Expected(ALICE), by_proxy)
    yield row_of("bare loopback call", refused(401, "no_token"), Call(me))
    yield row_of("forged identity header", refused(403, "identity_forged"), Call(me, says_alice))
    yield row_of("CLI with a token", Expected(LOOPBACK_USER), Call(me, secret=good.text))
    yield row_of("token for another audience", refused(401, "token_wrong_audience"), Call(me, secret=elsewhere.text))
    brief.wait_for_end()
    yield row_of("expired token", refused(401, "token_expired"), Call(me, secret=brief.text))
    forged = tampered(good.text, {"sub": ALICE})
    yield row_of("token changed to say alice", refused(401, "token_bad_signature"), Call(me, secret=forged))
    by_other = Call(cast.other, secret=good.text) if cast.other else None
    yield row_of("token shown by another uid", refused(401, "token_wrong_uid"), by_other)
    stop(broker)
    yield row_of("broker stopped: no token", refused(401, "no_token"), Call(me, secret=placeholder(socket)))
    yield row_of("broker stopped: old token", Expected(LOOPBACK_USER), Call(me, secret=good.text))


def _explanation(cast: _Cast, socket: str, place: Place, proxys_place: Place) -> str:
    proxy = f"believes the header '{USER_HEADER}' from user {_name(cast.proxy)} only"
    if not cast.other:
        proxy = (
            f"believes nobody's header '{USER_HEADER}'\n"
            f"  a second one  on 127.0.0.1:{proxys_place.port}, for the first row\n"
            "                believes yours: without root there is no other user to be the reverse proxy"
        )
    return f"""\
gatepass demo: who gets in at a gateway in trusted-proxy mode, and as whom

  broker        gatepass-broker on {socket}
                gives user {_name(cast.me)} short-lived tokens of {LOOPBACK_USER}
  gateway       demo/embedded_gateway.py on 127.0.0.1:{place.port}
                {proxy}

Each row is sent as an HTTP request and as a WebSocket login, by a process of the user in question."""


def _name(account: Account) -> str:
    try:
        return f"{pwd.getpwuid(account.uid).pw_name} ({account.uid})"
    except KeyError:
        return str(account.uid)
