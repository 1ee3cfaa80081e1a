"""Requests over a real socket, on both event loops."""

from __future__ import annotations

import json
import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import jwt as pyjwt
import pytest
from joserfc import jwt as jose_jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import KeySet

from gatepass.frames import encode_frame
from gatepass.messages import issued_token
from gatepass_broker.conversation import Conversation
from support.broker import (
    ISSUER,
    SCOPES,
    USER,
    RawClient,
    SteppedClock,
    TestBroker,
    error_code,
    in_thread,
    own_rule,
    running_broker,
)


def claims_by_pyjwt(token: str, jwks: dict[str, Any], audience: str = "openclaw") -> dict[str, Any]:
    key = pyjwt.PyJWKSet.from_dict(jwks)[pyjwt.get_unverified_header(token)["kid"]]
    claims: dict[str, Any] = pyjwt.decode(token, key, algorithms=["EdDSA"], audience=audience, issuer=ISSUER)
    return claims


def read_jwks(broker: TestBroker) -> dict[str, Any]:
    jwks: dict[str, Any] = json.loads((broker.directory / "jwks.json").read_text())
    return jwks


async def test_a_token_verifies_under_pyjwt_and_joserfc(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as broker:
        issued = issued_token(await broker.ask(op="issue", ttl=60))
        jwks = read_jwks(broker)
        claims = claims_by_pyjwt(issued.token, jwks)

        assert claims["sub"] == USER
        assert claims["exp"] - claims["iat"] == issued.expires_in == 60
        assert claims["scope"] == issued.scope == " ".join(SCOPES)
        assert claims["cnf"] == {"uid": os.geteuid()}
        with pytest.warns(SecurityWarning, match="RFC 9864"):  # joserfc prefers a name that others do not know yet
            decoded = jose_jwt.decode(issued.token, KeySet.import_key_set(jwks), algorithms=["EdDSA"])  # type: ignore[arg-type]
        assert decoded.claims == claims


async def test_the_jwks_file_is_for_everybody_to_read(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as broker:
        mode = (broker.directory / "jwks.json").stat().st_mode

        assert stat.S_IMODE(mode) == 0o644
        assert list(broker.directory.glob(".*.new")) == []


async def test_whoami_status_and_verify(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as broker:

        def talk() -> None:
            with RawClient(broker.socket) as client:
                who = client.ask(op="whoami")
                assert who["caller"]["uid"] == os.geteuid()
                assert who["caller"]["pid"] == os.getpid()
                assert sorted(os.getgroups()) == who["caller"]["groups"]
                assert who["grant"]["identity"] == USER
                token = client.ask(op="issue")["token"]
                assert client.ask(op="verify", token=token)["claims"]["sub"] == USER
                assert error_code(client.ask(op="verify", token=token, audience="x")) == "token_wrong_audience"
                assert error_code(client.ask(op="issue", scope="operator.admin")) == "denied"
                status = client.ask(op="status")
                assert (status["issued"], status["refused"], status["connections"]) == (1, 2, 1)
                assert status["issuer"] == ISSUER

        await in_thread(talk)


async def test_many_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with running_broker(tmp_path, limits={"pipelined": 8}) as broker:

        def talk() -> list[int]:
            with RawClient(broker.socket) as client:
                client.send(b"".join(encode_frame({"v": 1, "id": n, "op": "whoami"}) for n in range(1, 501)))
                client.socket.shutdown(1)
                replies = [client.receive() for _ in range(500)]
                assert client.is_closed()
            return [reply["id"] for reply in replies if reply is not None]

        assert await in_thread(talk) == list(range(1, 501))


@pytest.mark.parametrize(("connections", "in_a_row"), [(1, 8), (3, 2), (20, 1)])
async def test_one_user_gets_so_many_answers_in_a_row_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connections: int, in_a_row: int
) -> None:
    """Attack 31: whatever one user has sent, on many connections even, others have their turn after `pipelined`."""
    counts: list[int] = []
    replies = Conversation.replies

    def counted(self: Conversation, at_most: int) -> tuple[bytes, int]:
        result = replies(self, at_most)
        counts.append(result[1])
        return result

    monkeypatch.setattr(Conversation, "replies", counted)
    async with running_broker(tmp_path, limits={"pipelined": 8}) as broker:

        def talk() -> None:
            with ExitStack() as opened:
                clients = [opened.enter_context(RawClient(broker.socket)) for _ in range(connections)]
                for client in clients:  # each is answered, and so counted as open, before there is more to do
                    assert client.ask(op="whoami")
                for client in clients:
                    client.send(b"".join(encode_frame({"v": 1, "id": n, "op": "whoami"}) for n in range(1, 51)))
                for client in clients:
                    for _ in range(50):
                        assert client.receive()

        await in_thread(talk)
    assert max(counts) == in_a_row


async def test_hundred_callers_at_once_each_get_their_own_token(tmp_path: Path) -> None:
    """Attack 32: any number of identical requests in parallel."""
    tokens: list[str] = []
    async with running_broker(tmp_path, limits={"connections_per_uid": 200}) as broker:

        async def one() -> None:
            tokens.append((await broker.ask(op="issue"))["token"])

        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(one)

    assert len(set(tokens)) == 100


async def test_sockets_serve_what_they_are_for(tmp_path: Path) -> None:
    sockets = [
        {"path": str(tmp_path / "request.sock"), "mode": "0600", "allow": ["request"]},
        {"path": str(tmp_path / "follow.sock"), "mode": "0600", "allow": ["follow"]},
    ]
    async with running_broker(tmp_path, sockets=sockets):

        def talk() -> None:
            with RawClient(tmp_path / "follow.sock") as client:
                assert error_code(client.ask(op="issue")) == "operation_not_allowed"
                assert client.ask(op="follow")["seq"] == 1
            with RawClient(tmp_path / "request.sock") as client:
                assert error_code(client.ask(op="follow")) == "operation_not_allowed"
                assert client.ask(op="issue")["ok"]

        await in_thread(talk)


async def test_a_follower_learns_of_a_new_key_before_it_signs(tmp_path: Path) -> None:
    clock = SteppedClock()
    async with running_broker(
        tmp_path, clock=clock, broker={"key_lifetime": 200, "max_ttl": 120, "default_ttl": 100}
    ) as broker:
        with RawClient(broker.socket) as follower:
            first = await in_thread(lambda: follower.ask(op="follow"))
            token = (await broker.ask(op="issue"))["token"]
            clock.pass_time(145)
            broker.server.broker.turn_keys()
            second = await in_thread(follower.receive)

            assert second["id"] == first["id"]
            assert second["seq"] == first["seq"] + 1
            assert second["keys"][0] == first["keys"][0]
            assert len(second["keys"]) == 2
            before = pyjwt.get_unverified_header((await broker.ask(op="issue"))["token"])["kid"]
            assert before == first["keys"][0]["kid"]

            clock.pass_time(60)
            broker.server.broker.turn_keys()
            after = pyjwt.get_unverified_header((await broker.ask(op="issue"))["token"])["kid"]
            assert after == second["keys"][1]["kid"]
            assert len((await in_thread(follower.receive))["keys"]) == 2
            claims_by_pyjwt(token, read_jwks(broker))

            clock.pass_time(121)
            broker.server.broker.turn_keys()
            assert [key["kid"] for key in (await in_thread(follower.receive))["keys"]] == [after]


async def test_reload_changes_the_rules_at_once(tmp_path: Path) -> None:
    from support.broker import broker_settings

    async with running_broker(tmp_path) as broker:
        with RawClient(broker.socket) as client:
            assert (await in_thread(lambda: client.ask(op="issue")))["subject"] == USER
            broker.server.reload(broker_settings(tmp_path, rules=[own_rule(identity="other@example.com")]))
            assert (await in_thread(lambda: client.ask(op="issue")))["subject"] == "other@example.com"
            broker.server.reload(broker_settings(tmp_path, rules=[own_rule(uid=1)]))
            assert error_code(await in_thread(lambda: client.ask(op="issue"))) == "denied"


async def test_a_stop_answers_what_has_arrived(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as broker:
        client = RawClient(broker.socket)
        await anyio.sleep(0.05)
        client.send(encode_frame({"v": 1, "id": 1, "op": "issue"}))
    with client:
        reply = client.receive()
        assert reply is not None
        assert reply["ok"]
        assert client.is_closed()
    assert not broker.socket.exists()


@pytest.mark.parametrize("restarts", [1, 3])
async def test_tokens_from_before_a_restart_still_verify(tmp_path: Path, restarts: int) -> None:
    async with running_broker(tmp_path) as broker:
        token = (await broker.ask(op="issue"))["token"]
    for number in range(restarts):
        async with running_broker(tmp_path) as broker:
            assert (await broker.ask(op="verify", token=token))["ok"]
            assert (await broker.ask(op="follow"))["seq"] > number
            claims_by_pyjwt(token, read_jwks(broker))
            status = await broker.ask(op="status")
            assert status["issued"] == 1
            *old, current = [key["published_until"] for key in status["keys"]]
            assert current is None
            assert all(status["started"] < until <= status["started"] + 3_602 for until in old)


async def test_a_key_stays_published_until_its_last_token_ends_also_after_a_restart_with_shorter_lives(
    tmp_path: Path,
) -> None:
    clock = SteppedClock()
    async with running_broker(tmp_path, clock=clock, broker={"max_ttl": 3_000, "default_ttl": 3_000}) as broker:
        token = (await broker.ask(op="issue"))["token"]
    async with running_broker(tmp_path, clock=clock, broker={"max_ttl": 60, "default_ttl": 60}) as broker:
        clock.pass_time(2_900)
        broker.server.broker.turn_keys()
        claims_by_pyjwt(token, read_jwks(broker))
        clock.pass_time(200)
        broker.server.broker.turn_keys()
        assert pyjwt.get_unverified_header(token)["kid"] not in [key["kid"] for key in read_jwks(broker)["keys"]]
