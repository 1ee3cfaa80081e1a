"""Coming back with a token that has ended: what may, and attempts by whoever else has such a token."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gatepass.claims import Confirmation
from gatepass.revocations import Cut, Standing
from gatepass_gateway.clients import Clients
from gatepass_gateway.trusted_proxy import Client
from support.broker import SteppedClock
from support.fake_broker import FakeBroker, running_followed
from support.gateway import (
    Minter,
    TestGateway,
    a_process,
    bearer,
    eventually,
    free_port,
    login,
    messages_until_close,
    process_of,
    running_gateway,
)

OWN = Client(os.geteuid(), cgroup=4711)
EXPIRED = "gatepass_token_expired"
HOUR = 3_600


class Seen:
    """Whom the kernel shows to be at the other end."""

    client = OWN


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen = Seen()
    monkeypatch.setattr(Clients, "at_other_end", lambda *_: seen.client)
    return seen


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@asynccontextmanager
async def logged_in_once(
    directory: Path, clock: SteppedClock, **claims: Any
) -> AsyncIterator[tuple[TestGateway, FakeBroker, str]]:
    """Run a gateway at which a client with a long-lived token of five minutes was logged in an hour ago."""
    async with running_followed(directory, clock=clock) as (gateway, broker):
        token = gateway.token(**{"reconnect": 2 * HOUR, **claims})
        async with gateway.login(token):
            pass
        clock.pass_time(HOUR)
        yield gateway, broker, token


async def outcome(gateway: TestGateway, token: str, **options: Any) -> str:
    """Return how a login with `token` ends."""
    async with gateway.websocket(**options) as client:
        reply = await login(client, {"password": token})
        if reply["ok"]:
            return "in"
        await messages_until_close(client)
        reason: str = reply["error"]["details"]["authReason"]
        return reason


async def test_a_client_comes_back_as_it_was_until_the_time_is_over(tmp_path: Path, clock: SteppedClock) -> None:
    async with logged_in_once(tmp_path, clock) as (gateway, broker, token):
        async with gateway.login(token, scopes=["operator.read"]):
            await broker.has_sessions(1)
            (session,) = broker.sessions.values()
            assert (session.login, session.scope, session.jti) == ("reconnect", "operator.read", "a-token-id")
        clock.pass_time(HOUR - 10)
        assert await outcome(gateway, token) == "in"
        clock.pass_time(10)
        assert await outcome(gateway, token) == EXPIRED


async def test_without_permission_in_the_token_nobody_comes_back(tmp_path: Path, clock: SteppedClock) -> None:
    async with logged_in_once(tmp_path, clock, reconnect=0) as (gateway, _, token):
        assert await outcome(gateway, token) == EXPIRED


async def test_a_token_that_never_logged_in_does_not_start_to(tmp_path: Path, clock: SteppedClock) -> None:
    async with logged_in_once(tmp_path, clock) as (gateway, _, __):
        never_used = gateway.token(age=HOUR, reconnect=2 * HOUR, token_id="another")
        assert await outcome(gateway, never_used) == EXPIRED
        assert (await gateway.get("/echo", bearer(never_used))).error["code"] == EXPIRED


async def test_over_http_a_token_that_has_ended_has_ended(tmp_path: Path, clock: SteppedClock) -> None:
    async with logged_in_once(tmp_path, clock) as (gateway, _, token):
        assert (await gateway.get("/echo", bearer(token))).error["code"] == EXPIRED


@pytest.mark.parametrize(
    "client",
    [
        OWN._replace(uid=(OWN.uid and OWN.uid + 1) or 1),
        OWN._replace(uid=None),
        OWN._replace(cgroup=4712),
        OWN._replace(cgroup=None),
    ],
    ids=["other user", "unknown user", "other cgroup", "unknown cgroup"],
)
async def test_from_elsewhere_the_token_is_as_dead_as_it_is(
    tmp_path: Path, clock: SteppedClock, seen: Seen, client: Client
) -> None:
    async with logged_in_once(tmp_path, clock) as (gateway, _, token):
        seen.client = client
        assert await outcome(gateway, token) == EXPIRED
        seen.client = OWN
        assert await outcome(gateway, token) == "in"


async def test_a_login_from_an_unknown_cgroup_is_not_remembered(
    tmp_path: Path, clock: SteppedClock, seen: Seen
) -> None:
    seen.client = OWN._replace(cgroup=None)
    async with logged_in_once(tmp_path, clock) as (gateway, _, token):
        assert await outcome(gateway, token) == EXPIRED


async def test_who_is_revoked_or_locked_out_does_not_come_back(tmp_path: Path, clock: SteppedClock) -> None:
    async with logged_in_once(tmp_path, clock) as (gateway, broker, token):
        await broker.lock()
        assert await outcome(gateway, token) == "gatepass_locked"
        await broker.unlock()
        assert await outcome(gateway, token) == "in"
        await broker.revoke(Cut.JTI, "a-token-id")
        assert await outcome(gateway, token) == "gatepass_token_revoked"
        await broker.push(Standing())


async def test_a_live_session_that_came_back_is_cut_off_as_any_other(tmp_path: Path, clock: SteppedClock) -> None:
    async with logged_in_once(tmp_path, clock) as (gateway, broker, token), gateway.login(token) as client:
        await broker.revoke(Cut.JTI, "a-token-id")
        assert await messages_until_close(client) == []
        assert client.close_code == 1008


async def test_where_its_process_has_ended_nobody_comes_back(tmp_path: Path, clock: SteppedClock) -> None:
    with a_process() as process:
        bound = Confirmation(os.geteuid(), None, process_of(process.pid))
        async with logged_in_once(tmp_path, clock, confirmation=bound) as (gateway, _, token):
            assert await outcome(gateway, token) == "in"
            process.kill()
            process.wait()
            assert await outcome(gateway, token) == "gatepass_token_process_ended"


async def test_a_token_that_was_altered_is_another_one(tmp_path: Path, clock: SteppedClock) -> None:
    async with logged_in_once(tmp_path, clock) as (gateway, _, token):
        for altered in (token + "=", token + " ", token[:-1] + ("A" if token[-1] != "A" else "B")):
            assert await outcome(gateway, altered) != "in"


async def test_a_key_that_was_retired_meanwhile_keeps_nobody_out_who_may_come_back(
    tmp_path: Path, clock: SteppedClock
) -> None:
    async with logged_in_once(tmp_path, clock) as (gateway, broker, token):
        broker.minter = Minter()
        await broker.push(Standing())
        assert await outcome(gateway, token) == "in"
        assert await outcome(gateway, gateway.token(token_id="new")) == "gatepass_token_unknown_key"
        await broker.revoke(Cut.ALL)
        assert await outcome(gateway, token) == "gatepass_token_revoked"


# Over a restart of the proxy


def logins_file(gateway: TestGateway) -> Path:
    assert gateway.settings.state_dir is not None
    return gateway.settings.state_dir / f"gateway-logins-{gateway.port}.json"


async def written(gateway: TestGateway) -> str:
    await eventually(logins_file(gateway).exists)
    return logins_file(gateway).read_text()


@asynccontextmanager
async def restarted(
    directory: Path, clock: SteppedClock, change: Any = None, **changes: Any
) -> AsyncIterator[tuple[TestGateway, str]]:
    """Run a gateway that was stopped since a client was logged in there; `change` gets the file in between."""
    minter, port = Minter(), free_port()
    first: dict[str, Any] = {"minter": minter, "clock": clock, "listen": {"port": port}}
    async with running_gateway(directory, **first) as gateway:
        token = gateway.token(reconnect=2 * HOUR)
        async with gateway.login(token):
            pass
        path = logins_file(gateway)
        assert token not in await written(gateway)
        assert token.rpartition(".")[2] not in await written(gateway)
        assert path.stat().st_mode & 0o777 == 0o600
    if change is not None:
        change(path)
    clock.pass_time(HOUR)
    async with running_gateway(directory, **{**first, **changes}) as gateway:
        yield gateway, token


async def test_a_restart_of_the_proxy_keeps_nobody_out(tmp_path: Path, clock: SteppedClock) -> None:
    async with restarted(tmp_path, clock) as (gateway, token):
        assert await outcome(gateway, token) == "in"


async def test_a_proxy_for_another_audience_takes_nobody_back(tmp_path: Path, clock: SteppedClock) -> None:
    async with restarted(tmp_path, clock, identity={"audience": "other"}) as (gateway, token):
        assert await outcome(gateway, token) == "gatepass_token_wrong_audience"


async def test_a_proxy_that_has_not_heard_of_its_broker_takes_nobody_back(tmp_path: Path, clock: SteppedClock) -> None:
    keys = {"broker_socket": str(tmp_path / "none")}
    async with restarted(tmp_path, clock, keys=keys) as (gateway, token):
        assert await outcome(gateway, token) == "gatepass_unavailable"


def altered(**changes: Any) -> Any:
    def change(path: Path) -> None:
        document = json.loads(path.read_text())
        document["logins"][0] |= changes
        path.write_text(json.dumps(document))

    return change


def other_claims(path: Path) -> None:
    document = json.loads(path.read_text())
    document["logins"][0]["claims"]["boot"]["id"] = "f" * 32
    path.write_text(json.dumps(document))


def linked(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


TAMPERED = {
    "empty": lambda path: path.write_text(""),
    "no JSON": lambda path: path.write_text("{"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a list": lambda path: path.write_text("[]"),
    "another version": lambda path: path.write_text('{"version":2,"logins":[]}'),
    "no digest": altered(digest=""),
    "other digest": altered(digest="A" * 43),
    "cgroup of another type": altered(cgroup="4711"),
    "more in it": altered(more=1),
    "no claims": altered(claims={}),
    "another boot": other_claims,
    "writable by others": lambda path: path.chmod(0o666),
    "a link": linked,
    "a FIFO": fifo,
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED.keys())
async def test_a_file_that_is_not_as_it_was_written_takes_nobody_back_and_stops_nothing(
    tmp_path: Path, clock: SteppedClock, change: Any
) -> None:
    async with restarted(tmp_path, clock, change) as (gateway, token):
        assert await outcome(gateway, token) != "in"
        async with gateway.login(gateway.token(life=2 * HOUR)):
            pass
