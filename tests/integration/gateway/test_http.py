"""HTTP through the proxy, over sockets, on both event loops."""

from __future__ import annotations

import json
import os
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import h11
import pytest

from support.gateway import (
    SECONDS,
    TestGateway,
    bearer,
    eventually,
    gateway_that_is_down,
    http_client,
    raw_client,
    read_until,
    running_gateway,
)
from support.upstream import IDENTITY_SOURCE, SCOPES_HEADER, USER, USER_HEADER, running_upstream


async def test_a_bearer_token_becomes_the_identity_header_and_is_not_passed_on(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        token = gateway.token()
        answer = await gateway.get("/echo?a=b", bearer(token))
        [request] = gateway.upstream.requests

        assert answer.status == 200
        assert answer.json()["identity"] == USER
        assert request.source == IDENTITY_SOURCE
        assert request.target == "/echo?a=b"
        assert request.values(USER_HEADER) == [USER]
        assert request.values(SCOPES_HEADER) == ["operator.read,operator.write"]
        assert request.values("x-forwarded-for") == ["192.0.0.8"]
        assert request.values("host") == [f"127.0.0.1:{gateway.upstream.port}"]
        assert request.values("authorization") == []
        assert token.encode() not in gateway.upstream.bytes_received


async def test_a_request_without_a_token_goes_on_without_identity(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        answer = await gateway.get("/echo", ("authorization", "Bearer somebody-elses"), ("cookie", "a=b"))
        [request] = gateway.upstream.requests

        assert answer.json() == {"identity": None, "scopes": None, "source": "127.0.0.1", "body": ""}
        assert request.values("authorization") == ["Bearer somebody-elses"]
        assert request.values("cookie") == ["a=b"]
        assert request.values("host") == ["gateway"]


@pytest.mark.parametrize(
    ("of_token", "configured", "granted"),
    [
        (("operator.admin", "operator.read"), ["operator.read", "operator.write"], "operator.read"),
        (("operator.write",), ["operator.read"], ""),
        ((), ["operator.read"], ""),
        (("operator.read",), [], ""),
    ],
)
async def test_scopes_are_those_that_token_and_configuration_share_and_always_said(
    tmp_path: Path, of_token: tuple[str, ...], configured: list[str], granted: str
) -> None:
    async with running_gateway(tmp_path, identity={"users": {USER: configured}}) as gateway:
        await gateway.get("/echo", bearer(gateway.token(scope=of_token)))

        assert gateway.upstream.requests[0].values(SCOPES_HEADER) == [granted]


async def test_only_listed_headers_go_with_an_identity_and_fixed_ones_are_added(tmp_path: Path) -> None:
    changes = {"extra_headers": ["X-Mine"], "fixed_headers": {"x-required": "yes"}}
    async with running_gateway(tmp_path, identity=changes) as gateway:
        extra = [("x-mine", "1"), ("x-other", "1"), ("cookie", "a=b"), ("accept", "*/*"), ("x-openclaw-model", "m")]
        await gateway.get("/echo", bearer(gateway.token()), *extra)
        names = [name.lower() for name, _ in gateway.upstream.requests[0].headers]

        assert sorted(names) == sorted(
            ["host", "x-forwarded-for", "x-mine", "accept", "x-openclaw-model", USER_HEADER, SCOPES_HEADER,
             "x-required", "connection"]
        )  # fmt: skip


async def test_each_request_on_a_connection_is_judged_by_itself(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, http_client(gateway.port) as client:
        reads, writes = gateway.token(scope=("operator.read",)), gateway.token(scope=("operator.write",))
        seen = []
        for headers in ([bearer(reads)], [], [bearer(writes)], []):
            answer = (await client.request("POST", "/echo", *headers, body=b"x")).json()
            seen.append((answer["identity"], answer["scopes"], answer["source"]))

        assert seen == [
            (USER, ["operator.read"], IDENTITY_SOURCE),
            (None, None, "127.0.0.1"),
            (USER, ["operator.write"], IDENTITY_SOURCE),
            (None, None, "127.0.0.1"),
        ]


async def test_a_refused_request_says_why_and_ends_the_connection(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, http_client(gateway.port) as client:
        answer = await client.request("POST", "/echo", bearer(gateway.token(age=1_000)), body=b"x" * 100_000)

        assert answer.status == 401
        assert answer.error["code"] == "gatepass_token_expired"
        assert "has expired; ask the broker for a new one" in answer.error["message"]
        assert isinstance(await client.next_event(), h11.ConnectionClosed)
        assert gateway.upstream.connected == 0


async def test_a_streamed_answer_arrives_piece_by_piece(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, http_client(gateway.port) as client:
        await client.start("GET", "/events", bearer(gateway.token()))
        await client.send(h11.EndOfMessage())
        assert isinstance(await client.next_event(), h11.Response)
        for number in range(3):
            gateway.upstream.step.release()
            piece = await client.next_event()
            assert bytes(piece.data) == f"data: {number}\n\n".encode()
        assert isinstance(await client.next_event(), h11.EndOfMessage)


async def test_a_body_is_passed_on_piece_by_piece_while_the_answer_comes(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, http_client(gateway.port) as client:
        await client.start("POST", "/duplex", ("transfer-encoding", "chunked"))
        assert isinstance(await client.next_event(), h11.Response)
        for piece in (b"one", b"two" * 1000):
            await client.send(h11.Data(data=piece))
            back = b""
            while len(back) < len(piece):
                back += bytes((await client.next_event()).data)
            assert back == piece
        await client.send(h11.EndOfMessage())
        assert isinstance(await client.next_event(), h11.EndOfMessage)


@pytest.mark.parametrize("body", [b"x" * 3_000_000, [b"y" * 1_000_000] * 3], ids=["with a length", "in chunks"])
@pytest.mark.parametrize("verified", [True, False])
async def test_a_large_body_arrives_whole(tmp_path: Path, body: bytes | list[bytes], verified: bool) -> None:
    async with running_gateway(tmp_path) as gateway, http_client(gateway.port) as client:
        headers = [bearer(gateway.token())] if verified else []
        whole = body if isinstance(body, bytes) else b"".join(body)
        for _ in range(2):
            answer = await client.request("POST", "/echo", *headers, body=body)
            assert answer.json()["body"].encode() == whole


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body_leave_the_connection_usable(tmp_path: Path, status: int) -> None:
    async with running_gateway(tmp_path) as gateway, http_client(gateway.port) as client:
        for _ in range(2):
            answer = await client.request("GET", f"/status/{status}")
            assert (answer.status, answer.body) == (status, b"")
            assert answer.values("x-answered-by") == ["fake"]


async def test_head_has_the_length_and_no_body(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, http_client(gateway.port) as client:
        for _ in range(2):
            answer = await client.request("HEAD", "/echo")
            assert (answer.status, answer.body) == (200, b"")
            assert int(answer.values("content-length")[0]) > 10
        assert [request.method for request in gateway.upstream.requests] == ["HEAD", "HEAD"]


async def test_a_refused_head_request_has_no_body(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        answer = await gateway.get("/echo", ("x-forwarded-for", "1.2.3.4"), method="HEAD")

        assert (answer.status, answer.body) == (403, b"")


async def test_expect_100_is_answered_and_the_body_follows(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, http_client(gateway.port) as client:
        await client.start("POST", "/echo", ("expect", "100-continue"), ("content-length", "5"))
        assert (await client.next_event()).status_code == 100
        await client.send(h11.Data(data=b"hello"))
        await client.send(h11.EndOfMessage())

        assert (await client.response()).json()["body"] == "hello"
        assert gateway.upstream.requests[0].values("expect") == []


async def test_expect_100_is_not_answered_for_a_refused_request(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, http_client(gateway.port) as client:
        headers = [("expect", "100-continue"), ("content-length", "5"), bearer(gateway.token(age=1_000))]
        await client.start("POST", "/echo", *headers)

        assert (await client.response()).status == 401
        assert client.informational == []


@pytest.mark.parametrize("host", [b"Host: gateway\r\n", b""])
async def test_http_1_0_is_answered_and_closed(tmp_path: Path, host: bytes) -> None:
    async with running_gateway(tmp_path) as gateway:
        answer = await gateway.raw(b"GET /echo HTTP/1.0\r\n" + host + b"\r\n")

        assert answer.startswith(b"HTTP/1.1 200")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["identity"] is None


async def test_early_hints_do_not_stand_for_the_answer(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        assert (await gateway.get("/hints")).status == 200


async def test_an_answer_without_a_length_ends_with_its_connection(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        assert (await gateway.get("/close-delimited")).body == b"until the end"


async def test_an_answer_that_comes_before_the_whole_request_reaches_the_client(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, http_client(gateway.port) as client:
        await client.start("POST", "/early", ("content-length", "3000000"))
        await client.send(h11.Data(data=b"x" * 300_000))

        assert (await client.response()).status == 413


@pytest.mark.parametrize("target", ["/silent", "/events"])
async def test_a_client_that_hangs_up_ends_the_request_behind(tmp_path: Path, target: str) -> None:
    async with running_gateway(tmp_path) as gateway:
        async with http_client(gateway.port) as client:
            await client.start("GET", target)
            await client.send(h11.EndOfMessage())
            await eventually(lambda: gateway.upstream.requests)
        await eventually(lambda: gateway.upstream.hangups == 1)


async def test_a_client_that_hangs_up_in_the_middle_of_its_body_ends_the_request_behind(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        async with http_client(gateway.port) as client:
            await client.start("POST", "/duplex", ("content-length", "100"))
            await client.send(h11.Data(data=b"half"))
            await eventually(lambda: gateway.upstream.requests and gateway.upstream.requests[0].body == b"half")
        await anyio.sleep(0.05)
        assert (await gateway.get("/echo")).status == 200
        assert gateway.upstream.requests[0].body == b"half"


@pytest.mark.parametrize("target", ["/slam", "/garbage"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_no_answer_from_behind_is_503_with_a_cause(tmp_path: Path, target: str, method: str) -> None:
    async with running_gateway(tmp_path) as gateway:
        answer = await gateway.get(target, method=method, body=b"x" if method == "POST" else b"")

        assert answer.status == 503
        assert answer.values("retry-after") == ["2"]
        if method != "HEAD":
            assert answer.error["code"] == "gatepass_upstream_unavailable"
            assert "closed the connection without an answer" in answer.error["message"]


@pytest.mark.parametrize("target", ["/cut", "/cut-chunked"])
async def test_half_an_answer_does_not_look_whole(tmp_path: Path, target: str) -> None:
    async with running_gateway(tmp_path) as gateway:
        with pytest.raises((h11.RemoteProtocolError, anyio.BrokenResourceError)):
            await gateway.get(target)
        assert (await gateway.get("/echo")).status == 200


async def test_a_gateway_that_is_down_is_503_with_the_cause_and_works_once_it_is_up(tmp_path: Path) -> None:
    async with running_upstream() as behind:
        port = behind.port
    async with running_gateway(tmp_path, upstream=behind) as gateway:
        for headers in ([], [bearer(gateway.token())]):
            answer = await gateway.get("/echo", *headers)
            assert answer.status == 503
            assert f"nothing listens on 127.0.0.1 port {port}" in answer.error["message"]
        async with running_upstream(port=port):
            assert (await gateway.get("/echo", bearer(gateway.token()))).json()["identity"] == USER


async def test_requests_of_many_clients_at_once(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        token, seen = gateway.token(), []

        async def one(verified: bool) -> None:
            answer = await gateway.get("/echo", *([bearer(token)] if verified else []))
            seen.append((verified, answer.json()["identity"]))

        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(one, number % 2 == 0)

        assert sorted(set(seen), key=str) == [(False, None), (True, USER)]
        assert len(seen) == 60


async def test_connections_beyond_a_users_share_get_503_and_room_comes_back(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, limits={"connections_per_uid": 3}) as gateway:
        async with AsyncExitStack() as held:
            for _ in range(3):
                client = await held.enter_async_context(http_client(gateway.port))
                await client.request("GET", "/echo")
            answer = await gateway.get("/echo")
            assert (answer.status, answer.error["code"]) == (503, "gatepass_too_many_connections")
        await eventually_ok(gateway)


async def eventually_ok(gateway: TestGateway) -> None:
    with anyio.fail_after(SECONDS):
        while (await gateway.get("/echo")).status != 200:  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def test_a_fault_of_the_proxy_itself_ends_one_connection_and_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    async with running_gateway(tmp_path) as gateway:
        with monkeypatch.context() as patch:
            patch.setattr("gatepass_gateway.server.serve_client", fail)
            gateway.logs.clear()
            assert await gateway.raw(b"GET /echo HTTP/1.1\r\nHost: g\r\n\r\n") == b""
        assert [entry["event"] for entry in gateway.logs] == ["fault"]
        gateway.logs.clear()
        assert (await gateway.get("/echo")).status == 200


async def test_nothing_is_left_open_after_many_requests(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        await gateway.get("/echo")
        await anyio.sleep(0.05)
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for target in ["/echo", "/slam", "/garbage", "/status/204", "/echo?token=gatepass-none.x.y"] * 5:
            await gateway.get(target)
        for _ in range(5):
            async with raw_client(gateway.port) as stream:
                await stream.send(b"GET /silent HTTP/1.1\r\nHost: g\r\n\r\n")
        await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)  # noqa: PTH208


async def test_a_slow_head_is_cut_off(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, limits={"head_seconds": 0.2}) as gateway, raw_client(gateway.port) as stream:
        await stream.send(b"GET /echo HTTP/1.1\r\nHost")
        with anyio.fail_after(2), pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await stream.receive()
        assert gateway.upstream.connected == 0


async def test_an_answer_may_take_longer_than_any_limit_on_the_client(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, limits={"head_seconds": 0.1}) as gateway, http_client(gateway.port) as client:
        await client.start("GET", "/events")
        await client.send(h11.EndOfMessage())
        await client.next_event()
        await anyio.sleep(0.3)
        for _ in range(3):
            gateway.upstream.step.release()
        assert isinstance(await client.next_event(), h11.Data)


async def test_ipv6_loopback_is_served_like_ipv4(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, listen={"addresses": ["::1"]}) as gateway:
        async with raw_client(gateway.port, "::1") as stream:
            token = gateway.token().encode()
            await stream.send(b"GET /echo HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer " + token + b"\r\n\r\n")
            answer = await read_until(stream, b"}")

        assert json.loads(answer.partition(b"\r\n\r\n")[2])["identity"] == USER


async def test_a_reverse_proxy_brings_its_own_identity_and_browser_headers(tmp_path: Path) -> None:
    proxies = [{"user": os.geteuid()}]
    async with running_gateway(tmp_path, reverse_proxy=proxies) as gateway:
        headers = [(USER_HEADER, USER), ("x-forwarded-for", "9.9.9.9"), ("cookie", "a=b"), ("origin", "https://g")]
        answer = await gateway.get("/echo", *headers)
        [request] = gateway.upstream.requests

        assert answer.json()["identity"] == USER
        assert request.values("x-forwarded-for") == ["9.9.9.9"]
        assert request.values(SCOPES_HEADER) == []
        assert request.values("cookie") == ["a=b"]
        assert request.values("host") == ["gateway"]


async def test_a_forwarding_header_can_be_the_identity_header_and_is_sent_once(tmp_path: Path) -> None:
    proxies = [{"user": os.geteuid()}]
    async with (
        running_upstream(user_header="x-forwarded-user") as behind,
        running_gateway(
            tmp_path,
            upstream=behind,
            reverse_proxy=proxies,
            identity={"user_header": "X-Forwarded-User"},
        ) as gateway,
    ):
        answer = await gateway.get("/echo", ("x-forwarded-user", USER), ("x-forwarded-for", "9.9.9.9"))

        assert behind.requests[0].values("x-forwarded-user") == [USER]
        assert answer.json()["identity"] == USER


async def test_a_question_about_the_proxy_itself_is_answered_without_the_gateway_behind(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, upstream=gateway_that_is_down()) as gateway:
        answer = await gateway.get("*", method="OPTIONS")

        assert (answer.status, answer.body) == (204, b"")
        assert [entry for entry in gateway.logs if entry["event"] == "refused"] == []
        assert (await gateway.get("*")).error["code"] == "gatepass_bad_request"
        assert (await gateway.get("/echo", method="OPTIONS")).error["code"] == "gatepass_upstream_unavailable"
        assert (await gateway.get("*", (USER_HEADER, USER), method="OPTIONS")).status == 403
