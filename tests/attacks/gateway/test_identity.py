"""Attempts to get an identity, or wider scopes, without a token that gives them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from gatepass.tokens import header
from support.gateway import (
    Minter,
    TestGateway,
    bearer,
    client_of,
    connect_message,
    eventually,
    http_client,
    login,
    messages_until_close,
    next_json,
    read_all,
    running_gateway,
)
from support.upstream import IDENTITY_SOURCE, SCOPES_HEADER, USER, USER_HEADER, running_upstream

root = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user"),
]
OTHER_UID = 33
NAME = USER_HEADER.encode()
VALUE = USER.encode()

FORGERIES = {
    "as it is": b"x-unguessable-user: " + VALUE,
    "another case": b"X-UNGUESSABLE-User: " + VALUE,
    "underscores": b"x_unguessable_user: " + VALUE,
    "one underscore": b"x-unguessable_user: " + VALUE,
    "a trailing dot": b"x-unguessable-user.: " + VALUE,
    "a trailing tab": b"x-unguessable-user\t: " + VALUE,
    "a trailing blank": b"x-unguessable-user : " + VALUE,
    "a trailing NUL": b"x-unguessable-user\0: " + VALUE,
    "twice": b"x-unguessable-user: " + VALUE + b"\r\nx-unguessable-user: mallory@example.com",
    "beside an innocent one": b"accept: */*\r\nX_Unguessable-User: " + VALUE,
    "folded": b"accept: */*\r\n x-unguessable-user: " + VALUE,
    "after a bare CR": b"accept: */*\rx-unguessable-user: " + VALUE,
    "after a bare LF": b"accept: */*\nx-unguessable-user: " + VALUE,
    "empty first": b"x-unguessable-user:\r\nx-unguessable-user: " + VALUE,
}


def nobody_got_in(gateway: TestGateway) -> None:
    """Check what was recorded behind: no request with an identity, and none by the trusted way."""
    for request in gateway.upstream.requests:
        assert gateway.upstream.identity_of(request) is None
        assert request.source != IDENTITY_SOURCE
        assert not [name for name, _ in request.headers if "unguessable" in name.lower()]


@pytest.mark.parametrize("forged", FORGERIES.values(), ids=FORGERIES.keys())
@pytest.mark.parametrize("kind", [b"GET /echo", b"GET /ws"])
async def test_forged_identity_header(tmp_path: Path, forged: bytes, kind: bytes) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n" if kind == b"GET /ws" else b"Connection: close\r\n"
    key = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" if b"ws" in kind else b""
    async with running_gateway(tmp_path, limits={"first_frame_seconds": 0.1}) as gateway:
        answer = await gateway.raw(kind + b" HTTP/1.1\r\nHost: g\r\n" + upgrade + key + forged + b"\r\n\r\n")

        nobody_got_in(gateway)
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403")) or forged.startswith(b"accept")


async def test_forged_identity_header_in_a_trailer(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        await gateway.raw(
            b"POST /echo HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\nTrailer: x-unguessable-user\r\n"
            b"Connection: close\r\n\r\n1\r\nx\r\n0\r\nx-unguessable-user: derek@example.com\r\n\r\n"
        )
        nobody_got_in(gateway)
        assert b"unguessable" not in gateway.upstream.bytes_received


async def test_forged_identity_header_in_a_trailer_beside_a_token_changes_nobody(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        await gateway.raw(
            b"POST /echo HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
            + b"Authorization: Bearer "
            + gateway.token().encode()
            + b"\r\n\r\n1\r\nx\r\n0\r\nx-unguessable-user: mallory@example.com\r\n\r\n"
        )
        assert b"mallory" not in gateway.upstream.bytes_received


async def test_forged_identity_header_in_a_second_request_after_a_good_one(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, http_client(gateway.port) as client:
        assert (await client.request("GET", "/echo", bearer(gateway.token()))).json()["identity"] == USER
        answer = await client.request("GET", "/echo", (USER_HEADER, "mallory@example.com"))

        assert answer.error["code"] == "gatepass_identity_forged"
        assert len(gateway.upstream.requests) == 1


async def test_forged_identity_header_beside_a_good_token_is_refused(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        answer = await gateway.get("/echo", bearer(gateway.token()), (USER_HEADER, "mallory@example.com"))

        assert answer.status == 403
        assert gateway.upstream.connected == 0


@pytest.mark.parametrize("name", [USER_HEADER, USER_HEADER.replace("-", "_"), USER_HEADER.title()])
async def test_forged_header_of_a_name_that_the_gateway_has_and_the_proxy_does_not_know_yet(
    tmp_path: Path, name: str
) -> None:
    """Here nothing recognises the name: what holds is that the request comes from an address nobody trusts."""
    async with running_gateway(tmp_path, identity={"user_header": "x-old-name"}) as gateway:
        answer = await gateway.get("/echo", (name, USER))

        assert answer.json()["identity"] is None
        assert gateway.upstream.requests[0].source == "127.0.0.1"
        async with gateway.websocket(additional_headers=[(name, USER)]) as client:
            assert (await login(client, None))["error"]["code"] == "NOT_PAIRED"
        answer = await gateway.get("/echo", bearer(gateway.token()), (name, USER))
        assert answer.json()["identity"] is None


@pytest.mark.parametrize(
    "name",
    ["x-forwarded-for", "X_Forwarded_For", "forwarded", "x-real-ip", "x-forwarded-anything", "tailscale-user-login"],
)
@pytest.mark.parametrize("verified", [True, False])
async def test_forwarding_headers_from_a_process_that_is_no_proxy(tmp_path: Path, name: str, verified: bool) -> None:
    async with running_gateway(tmp_path) as gateway:
        headers = [(name, "9.9.9.9"), *([bearer(gateway.token())] if verified else [])]
        answer = await gateway.get("/echo", *headers)

        assert (answer.status, answer.error["code"]) == (403, "gatepass_forwarded")
        assert gateway.upstream.connected == 0


@pytest.mark.parametrize(
    "spelling",
    [
        [("x-openclaw-scopes", "operator.admin")],
        [("x-openclaw-scopes", "operator.admin"), ("x-openclaw-scopes", "operator.admin")],
        [("x-openclaw-scopes", "")],
        [("X_OpenClaw_Scopes", "operator.admin")],
        [("X-OPENCLAW-SCOPES", "operator.admin")],
        [("x-openclaw-scopes.", "operator.admin")],
        [("connection", "x-openclaw-scopes"), ("x-openclaw-scopes", "operator.admin")],
        [("connection", f"{SCOPES_HEADER}, {USER_HEADER}, host")],
    ],
)
async def test_a_clients_own_scopes_header_changes_nothing(tmp_path: Path, spelling: list[tuple[str, str]]) -> None:
    async with running_gateway(tmp_path) as gateway:
        token = gateway.token(scope=("operator.read",))
        answer = await gateway.get("/echo", bearer(token), *spelling)
        async with gateway.websocket(
            additional_headers=[*spelling] if "connection" not in dict(spelling) else []
        ) as client:
            reply = await login(client, {"password": token})

        assert answer.json()["scopes"] == ["operator.read"]
        assert gateway.upstream.requests[0].values(SCOPES_HEADER) == ["operator.read"]
        assert reply["payload"]["auth"]["scopes"] == ["operator.read"]


def hs256(minter: Minter) -> str:
    """A token signed with the public key as if it were an HMAC secret."""
    head = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": minter.kid, "typ": "gatepass+jwt"}).encode())
    signed = head.rstrip(b"=") + b"." + minter.token().split(".")[1].encode()
    mac = hmac.new(minter.public, signed, hashlib.sha256).digest()
    return (signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


def alg_none(minter: Minter) -> str:
    head = base64.urlsafe_b64encode(json.dumps({"alg": "none", "typ": "gatepass+jwt"}).encode()).rstrip(b"=").decode()
    return f"{head}.{minter.token().split('.')[1]}."


def tampered(minter: Minter) -> str:
    head, payload, signature = minter.token().split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    claims["scope"] = "operator.admin"
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"{head}.{payload}.{signature}"


def other_header(minter: Minter) -> str:
    return f"{header(Minter().kid)}.{minter.token().split('.', 1)[1]}"


BAD_TOKENS: dict[str, Any] = {
    "expired": lambda minter: minter.token(age=1_000),
    "not yet valid": lambda minter: minter.token(age=-1_000),
    "for another audience": lambda minter: minter.token(audience="other"),
    "for another uid": lambda minter: minter.token(uid=os.geteuid() + 1),
    "of another broker": lambda minter: Minter().token(),
    "of another issuer": lambda minter: minter.token(issuer="gatepass:other"),
    "of an unknown user": lambda minter: minter.token(subject="mallory@example.com"),
    "of the user in another case": lambda minter: minter.token(subject="Derek@example.com"),
    "of the user in a homoglyph": lambda minter: minter.token(subject="d\u0435rek@example.com"),
    "with a claim changed": tampered,
    "with another header": other_header,
    "alg none": alg_none,
    "alg HS256 with the public key as secret": hs256,
    "cut off": lambda minter: minter.token()[:-10],
    "with a tail": lambda minter: minter.token() + ".x",
    "the gateway's own placeholder": lambda minter: "gatepass-none.gateway.AAAAAAAAAAAAAAAAAAAAAA",
    "the placeholder in another case": lambda minter: "Gatepass-None.gateway.AAAAAAAAAAAAAAAAAAAAAA",
}


@pytest.mark.parametrize("make", BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
async def test_bad_tokens_log_nobody_in_and_are_never_passed_on(tmp_path: Path, make: Any) -> None:
    async with running_gateway(tmp_path) as gateway:
        token: str = make(gateway.minter)
        answer = await gateway.get("/echo", bearer(token))
        targets = [f"/echo?token={token}", f"/__openclaw__/assistant-media?token={token}", f"/a/{token}"]
        by_url = [await gateway.get(target) for target in targets]
        for field in ("password", "token", "deviceToken", "bootstrapToken"):
            async with gateway.websocket() as client:
                reply = await login(client, {field: token}, device={"id": "x"})
                assert reply["ok"] is False, reply
                assert "gatepass: " in reply["error"]["message"]

        assert answer.status in (401, 403)
        assert answer.error["code"].startswith("gatepass_")
        assert [(got.status, got.error["code"]) for got in by_url] == [(400, "gatepass_secret_misplaced")] * 3
        assert token.encode() not in gateway.upstream.bytes_received
        assert token not in answer.body.decode()
        nobody_got_in(gateway)


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize(
    "place",
    [
        lambda token: {"target": f"/echo?token={token}"},
        lambda token: {"target": f"/echo?x=%65{token[1:]}"},
        lambda token: {"target": f"/echo/{token.replace('.', '%2E')}/x"},
        lambda token: {"headers": [("cookie", f"session={token}")]},
        lambda token: {"headers": [("x-openclaw-token", token)]},
        lambda token: {"headers": [("authorization", f"Basic {token}")]},
        lambda token: {"headers": [("authorization", f"Token {token}")]},
        lambda token: {"headers": [("authorization", f"Bearer\t{token}")]},
        lambda token: {"headers": [("authorization.", f"Basic {token}")]},
        lambda token: {"headers": [("sec-websocket-protocol", f"x, {token}")]},
        lambda token: {"headers": [("user-agent", token), bearer(token)]},
    ],
)
async def test_a_token_in_any_other_place_is_refused_and_not_passed_on(tmp_path: Path, place: Any, good: bool) -> None:
    async with running_gateway(tmp_path) as gateway:
        token = gateway.token() if good else gateway.token(audience="other")
        request = place(token)
        answer = await gateway.get(request.get("target", "/echo"), *request.get("headers", ()))

        assert answer.status in (400, 401)
        assert gateway.upstream.connected == 0


async def test_a_second_token_beside_a_good_one_is_not_passed_on(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        bad = gateway.token(audience="other")
        for name in ("user-agent", "x-openclaw-session-key", "accept", "cookie"):
            answer = await gateway.get("/echo", bearer(gateway.token()), (name, bad))
            assert answer.error["code"] == "gatepass_secret_misplaced"
        assert gateway.upstream.connected == 0


@pytest.mark.parametrize(
    "params",
    [
        {"locale": "TOKEN"},
        {"client": {"id": "cli", "instanceId": "TOKEN"}},
        {"caps": ["TOKEN"]},
        {"auth": {"deviceToken": "TOKEN"}},
        {"auth": {"bootstrapToken": "TOKEN"}},
        {"auth": {"approvalRuntimeToken": "TOKEN"}},
        {"auth": {"password": "TOKEN", "token": "OTHER"}},
        {"auth": {"password": "OTHER"}, "role": "node"},
        {"auth": {"token": "TOKEN"}, "role": "node", "device": {"id": "x"}},
        {"auth": {"token": "TOKEN"}, "role": "admin"},
        {"device": {"signature": "TOKEN"}},
    ],
)
@pytest.mark.parametrize("binary", [True, False])
async def test_a_token_elsewhere_in_the_first_frame_is_refused_and_not_passed_on(
    tmp_path: Path, params: dict[str, Any], binary: bool
) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.websocket() as client:
        text = json.dumps(connect_message(**params))
        text = text.replace("TOKEN", gateway.token()).replace("OTHER", gateway.token(audience="other"))
        await next_json(client)
        await client.send(text.encode() if binary else text)
        assert not any(answer["ok"] for answer in await messages_until_close(client))

        [session] = gateway.upstream.sessions
        assert session.messages == []


async def test_a_binary_first_frame_is_judged_like_text(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.websocket() as client:
        await next_json(client)
        await client.send(json.dumps(connect_message({"password": gateway.token()})).encode())
        assert (await next_json(client))["payload"]["auth"]["user"] == USER


async def test_a_login_in_the_second_frame_while_the_first_waits_for_its_answer(tmp_path: Path) -> None:
    """The gateway's own secret must not slip by unread behind a harmless first frame."""
    async with running_gateway(tmp_path, limits={"login_seconds": 0.5}) as gateway, gateway.websocket() as client:
        await next_json(client)
        gateway.upstream.websocket = "all:silent-login"
        await client.send(json.dumps(connect_message(None, role="operator")))
        await client.send(json.dumps(connect_message({"password": gateway.upstream.password})))
        assert not any(answer["ok"] for answer in await messages_until_close(client))
        assert all(gateway.upstream.password not in message for message in gateway.upstream.sessions[0].messages)
        assert len(gateway.upstream.sessions[0].messages) == 1


async def test_a_second_connect_after_a_refused_one_is_not_passed_on(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.websocket() as client:
        await login(client, None)
        with contextlib.suppress(ConnectionClosed):
            await client.send(json.dumps(connect_message({"password": gateway.upstream.password})))
        assert await messages_until_close(client) == []
        assert gateway.upstream.password.encode() not in gateway.upstream.bytes_received


async def test_the_gateways_own_secret_logs_in_only_past_the_proxy(tmp_path: Path) -> None:
    """Shows that the embedded gateway would take it, so that the tests above mean something."""
    async with running_gateway(tmp_path) as gateway:
        from websockets.asyncio.client import connect

        async with connect(f"ws://127.0.0.1:{gateway.upstream.port}", proxy=None) as direct:
            assert (await login(direct, {"password": gateway.upstream.password}))["ok"]


@pytest.mark.parametrize(
    ("auth", "params"),
    [
        ({"deviceToken": "x"}, {"device": {"id": "x"}}),
        ({"token": "x"}, {"device": {"id": "x"}}),
        ({"bootstrapToken": "x"}, {"device": {"id": "x"}}),
        ({"password": "wrong", "deviceToken": "x"}, {"device": {"id": "x"}}),
        ({"deviceToken": "x"}, {"device": {"id": "x"}, "role": "operator"}),
    ],
)
async def test_an_operators_device_credential_without_a_rule(
    tmp_path: Path, auth: dict[str, str], params: dict[str, Any]
) -> None:
    message = connect_message(auth, **params)
    if "role" not in params:
        del message["params"]["role"]
    async with running_gateway(tmp_path) as gateway, gateway.websocket() as client:
        await next_json(client)
        await client.send(json.dumps(message))
        reply = await next_json(client)

        assert reply["error"]["details"]["authReason"] == "gatepass_device_login"
        assert "[device_logins]" in reply["error"]["message"]
        assert gateway.upstream.sessions[0].messages == []


async def test_a_device_credential_behind_a_bearer_token_at_the_upgrade_is_taken_out(tmp_path: Path) -> None:
    """A device's scopes would come on top of the token's, and the answer would hold a new long-lived credential."""
    async with (
        running_gateway(tmp_path) as gateway,
        gateway.websocket(additional_headers=[bearer(gateway.token())]) as client,
    ):
        await login(client, {"deviceToken": "x"}, device={"id": "x"})
        sent = json.loads(gateway.upstream.sessions[1].messages[0])
        assert not {"auth", "device"} & sent["params"].keys()


async def test_a_device_credential_beside_a_token_is_taken_out(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway, gateway.websocket() as client:
        auth = {"password": gateway.token(), "deviceToken": "x", "bootstrapToken": "y"}
        assert (await login(client, auth, device={"id": "x"}))["ok"]
        sent = json.loads(gateway.upstream.sessions[1].messages[0])
        assert not {"auth", "device"} & sent["params"].keys()


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1", "null"])
async def test_a_token_beside_a_browsers_origin(tmp_path: Path, origin: str) -> None:
    async with running_gateway(tmp_path) as gateway:
        answer = await gateway.get("/echo", bearer(gateway.token()), ("origin", origin))
        async with gateway.websocket(origin=origin) as client:
            reply = await login(client, {"password": gateway.token()})

        assert answer.error["code"] == "gatepass_browser_origin"
        assert reply["error"]["details"]["authReason"] == "gatepass_browser_origin"
        nobody_got_in(gateway)


async def test_pipelined_requests_with_different_tokens_are_answered_each_as_its_own(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        tokens = [gateway.token(scope=(scope,)) for scope in ("operator.read", "operator.write")]
        first, third = (
            b"GET /echo HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer %s\r\n\r\n" % t.encode() for t in tokens
        )
        second = b"POST /echo HTTP/1.1\r\nHost: g\r\nContent-Length: 4\r\n\r\nbody"
        last = b"GET /echo HTTP/1.1\r\nHost: g\r\nConnection: close\r\nx-unguessable-user: derek@example.com\r\n\r\n"
        answer = await gateway.raw(first + second + third + last)

        assert answer.count(b"HTTP/1.1 200") == 3
        assert answer.count(b"HTTP/1.1 403") == 1
        assert [(request.source, request.values(SCOPES_HEADER)) for request in gateway.upstream.requests] == [
            (IDENTITY_SOURCE, ["operator.read"]),
            ("127.0.0.1", []),
            (IDENTITY_SOURCE, ["operator.write"]),
        ]


@pytest.mark.parametrize("agent", ["ELB-HealthChecker/2.0", "kube-probe/1.29", "swiftpm-testing-helper"])
@pytest.mark.parametrize("target", ["/healthz", "/readyz", "/startupz", "/ping"])
async def test_no_user_agent_and_no_path_is_let_through_for_health_checks(
    tmp_path: Path, agent: str, target: str
) -> None:
    async with running_gateway(tmp_path) as gateway:
        answer = await gateway.get(target, ("user-agent", agent), (USER_HEADER, USER))
        assert answer.status == 403
        nobody_got_in(gateway)


@pytest.mark.parametrize("mark", [pytest.param(None, marks=root)])
async def test_another_users_token(tmp_path: Path, mark: None) -> None:
    async with running_gateway(tmp_path) as gateway:
        request = "GET /echo HTTP/1.1\r\nHost: g\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n"
        async with client_of(gateway.port, OTHER_UID) as stream:
            await stream.send(request.format(gateway.token()).encode())
            answer = await read_all(stream)
        async with client_of(gateway.port, OTHER_UID) as stream:
            await stream.send(request.format(gateway.token(uid=OTHER_UID)).encode())
            own = await read_all(stream)

        assert b"gatepass_token_wrong_uid" in answer
        assert b'"identity": "derek@example.com"' in own
        assert len(gateway.upstream.requests) == 1


@pytest.mark.parametrize("mark", [pytest.param(None, marks=root)])
async def test_the_reverse_proxys_header_from_another_user(tmp_path: Path, mark: None) -> None:
    async with running_gateway(tmp_path, reverse_proxy=[{"user": 0}]) as gateway:
        async with client_of(gateway.port, OTHER_UID) as stream:
            await stream.send(b"GET /echo HTTP/1.1\r\nHost: g\r\nx-unguessable-user: derek@example.com\r\n\r\n")
            answer = await read_all(stream)
        assert b"gatepass_identity_forged" in answer
        assert gateway.upstream.connected == 0


async def test_a_client_that_has_shut_down_its_side_is_nobody(tmp_path: Path) -> None:
    """The kernel says root for such a socket. All is done here before the proxy can take the connection."""
    async with running_gateway(tmp_path) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.port)) as client:
            token = gateway.token().encode()
            client.sendall(b"GET /echo HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer " + token + b"\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            await eventually(lambda: [entry for entry in gateway.logs if entry["event"] == "refused"])

        assert [entry["reason"] for entry in gateway.logs if entry["event"] == "refused"] == ["token_wrong_uid"]
        assert gateway.upstream.connected == 0


async def test_an_identity_that_the_gateway_does_not_know_gets_nothing_by_the_trusted_way(tmp_path: Path) -> None:
    async with (
        running_upstream(allow_users=("somebody@example.com",)) as behind,
        running_gateway(tmp_path, upstream=behind) as gateway,
        gateway.websocket() as client,
    ):
        reply = await login(client, {"password": gateway.token()})
        assert reply["ok"] is False
        await eventually(behind.sessions[1].ended.is_set)


@pytest.mark.parametrize("option", ["x-forwarded-for", "X_Forwarded_For", "forwarded", "x-real-ip", "Origin"])
async def test_a_stranger_behind_the_reverse_proxy_cannot_strip_what_says_so(tmp_path: Path, option: str) -> None:
    """`Connection` names fields that end at the next hop: without them the request would look local."""
    proxies = [{"user": os.geteuid()}]
    async with running_gateway(tmp_path, reverse_proxy=proxies) as gateway:
        answer = await gateway.get("/echo", ("x-forwarded-for", "203.0.113.7"), ("connection", f"close, {option}"))
        assert answer.error["code"] == "gatepass_bad_request"
        assert not gateway.upstream.requests


@pytest.mark.parametrize(
    "name", [USER_HEADER.replace("-", "_", 1), f"{USER_HEADER}.", USER_HEADER.replace("-", "_").upper()]
)
async def test_another_spelling_of_the_identity_header_through_the_reverse_proxy(tmp_path: Path, name: str) -> None:
    """It may come from a stranger, where the reverse proxy sets no identity and removes the exact name only."""
    proxies = [{"user": os.geteuid()}]
    async with running_gateway(tmp_path, reverse_proxy=proxies) as gateway:
        answer = await gateway.get("/echo", ("x-forwarded-for", "203.0.113.7"), (name, USER))
        assert answer.error["code"] == "gatepass_identity_forged"
        assert not gateway.upstream.requests
