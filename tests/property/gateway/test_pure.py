"""No input makes the deciding functions raise anything but their declared errors, or gives an identity for nothing."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gatepass.clock import now
from gatepass.errors import TokenError
from gatepass.tokens import Presenter
from gatepass_gateway.connect_frame import (
    ConnectFrame,
    answer_to,
    error_frame,
    is_challenge,
    parse_connect,
    refuse_misplaced_secrets,
    with_identity,
)
from gatepass_gateway.headers import Headers, allowed_with_identity, canonical_name, end_to_end
from gatepass_gateway.left_behind import Watch
from gatepass_gateway.no_token import no_token_error
from gatepass_gateway.refused import RefusedError
from gatepass_gateway.secret_shape import is_gatepass_shaped
from gatepass_gateway.trusted_proxy import Client, IdentityPolicy, Request, authenticate
from gatepass_gateway.verifier import Verifier, key_set
from support.gateway import ISSUER, Minter
from support.upstream import USER

MINTER = Minter()
VERIFIER = Verifier("openclaw", key_set(ISSUER, MINTER.jwks()["keys"]))
UID = 1000
GOOD = MINTER.token(uid=UID)
BAD = [
    MINTER.token(uid=UID, audience="other"),
    MINTER.token(uid=UID, age=1_000),
    MINTER.token(uid=UID + 2),
    MINTER.token(uid=UID, issuer="gatepass:other"),
    Minter().token(uid=UID),
    GOOD[:-1] + ("A" if GOOD[-1] != "A" else "B"),
    GOOD + ".",
    GOOD.partition(".")[0],
    "gatepass-none.gateway.AAAAAAAAAAAAAAAAAAAAAA",
]
POLICY = IdentityPolicy(b"x-user", b"x-openclaw-scopes", {USER: frozenset({"operator.read", "operator.write"})})

names = st.one_of(
    st.sampled_from(
        [
            *(b"x-user", b"X_USER", b"x-user.", b"x-user\t", b"x-forwarded-for", b"X-Real-IP", b"authorization"),
            *(b"origin", b"x-openclaw-scopes", b"connection", b"cookie", b"host", b"content-length", b"accept"),
        ]
    ),
    st.binary(max_size=20),
)
headers: st.SearchStrategy[Headers] = st.lists(st.tuples(names, st.binary(max_size=40)), max_size=6).map(tuple)
secrets = st.one_of(st.none(), st.text(max_size=60), st.sampled_from(BAD), st.text(max_size=9).map(lambda t: GOOD + t))
uids = st.sampled_from([None, 0, UID, UID + 1])


def verify(uid: int | None, token: str) -> Any:
    return VERIFIER.verify(token, Presenter(uid), now())


@given(headers, st.one_of(st.none(), st.text(max_size=60), st.sampled_from([*BAD, GOOD])))
def test_through_the_reverse_proxy_the_identity_is_what_the_exact_header_says(
    fields: Headers, secret: str | None
) -> None:
    try:
        identity = authenticate(
            Request(fields, Client(900, is_reverse_proxy=True), secret), POLICY, lambda token: verify(900, token)
        )
    except (RefusedError, TokenError):
        return
    exact = [value for name, value in fields if name == b"x-user"]
    assert [identity.user.encode()] == exact if identity else not exact


@given(headers, uids, st.one_of(st.none(), st.text(max_size=60), st.sampled_from(BAD)))
def test_without_a_valid_token_there_is_never_an_identity(fields: Headers, uid: int | None, secret: str | None) -> None:
    try:
        identity = authenticate(Request(fields, Client(uid), secret), POLICY, lambda token: verify(uid, token))
    except (RefusedError, TokenError):
        return
    assert identity is None
    assert secret is None or not is_gatepass_shaped(secret)
    assert b"x-user" not in {canonical_name(name) for name, _ in fields}


@given(headers, uids, secrets, st.one_of(st.none(), st.frozensets(st.text(max_size=20))))
def test_an_identity_is_always_the_tokens_and_its_scopes_are_in_all_three_sets(
    fields: Headers, uid: int | None, secret: str | None, requested: frozenset[str] | None
) -> None:
    try:
        identity = authenticate(
            Request(fields, Client(uid), secret, requested), POLICY, lambda token: verify(uid, token)
        )
    except (RefusedError, TokenError):
        return
    if identity is not None:
        assert (secret, uid, identity.user) == (GOOD, UID, USER)
        assert identity.scopes is not None
        assert identity.scopes <= POLICY.users[USER]
        assert requested is None or identity.scopes <= requested


@given(headers)
def test_beside_a_tokens_identity_only_listed_names_pass_whatever_came(fields: Headers) -> None:
    lowered = tuple((name.lower(), value) for name, value in fields)
    passed = {
        name for name, _ in allowed_with_identity(end_to_end(lowered), from_reverse_proxy=False, extra=frozenset())
    }

    assert passed <= {name for name, _ in lowered}
    assert not passed & {
        b"x-user",
        b"x-openclaw-scopes",
        b"authorization",
        b"cookie",
        b"origin",
        b"host",
        b"connection",
    }


@given(headers)
def test_no_spelling_survives_canonicalisation_twice(fields: Headers) -> None:
    for name, _ in fields:
        assert canonical_name(canonical_name(name)) == canonical_name(name)


@given(st.text())
def test_any_text_is_judged(text: str) -> None:
    is_gatepass_shaped(text)
    no_token_error(text)


@given(st.text(st.characters(exclude_categories=()), max_size=30), st.text(max_size=30))
def test_a_token_is_recognised_in_any_surroundings(before: str, after: str) -> None:
    for secret in (GOOD, *BAD):
        assert is_gatepass_shaped(f"{before} {secret} {after}")


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4))
def test_a_header_with_our_type_is_recognised_whatever_else_it_says(more: dict[str, str]) -> None:
    header = json.dumps({**more, "typ": "gatepass+jwt"}).encode()

    assert is_gatepass_shaped(base64.urlsafe_b64encode(header).rstrip(b"=").decode() + ".e30.c2ln")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.sampled_from([GOOD, *BAD]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
credentials = st.dictionaries(
    st.sampled_from(["password", "token", "deviceToken", "bootstrapToken"]),
    st.one_of(st.sampled_from([GOOD, *BAD]), st.text(max_size=10), json_values),
)
params = st.fixed_dictionaries(
    {},
    optional={
        "auth": credentials | json_values,
        "role": st.sampled_from(["operator", "node", "worker"]) | json_values,
        "scopes": st.lists(st.text(max_size=10)) | json_values,
        "device": json_values,
        "locale": json_values,
    },
)
frames = st.fixed_dictionaries(
    {"type": st.just("req"), "method": st.just("connect"), "id": st.text(max_size=5), "params": params | json_values}
)


def read(payload: bytes) -> ConnectFrame | None:
    try:
        return parse_connect(payload)
    except RefusedError as error:
        json.loads(error_frame("1", error))
        return None


@given(st.binary(max_size=300))
def test_any_bytes_as_a_first_message(payload: bytes) -> None:
    read(payload)
    answer_to(payload, "1")
    is_challenge(payload)


@given(frames)
def test_any_first_frame_is_read_or_refused_and_nothing_of_ours_goes_on(frame: dict[str, Any]) -> None:
    connect = read(json.dumps(frame).encode())
    if connect is None:
        return
    for besides_auth in (True, False):
        try:
            refuse_misplaced_secrets(connect, besides_auth=besides_auth)
        except RefusedError:
            continue
        sent = with_identity(connect, frozenset()) if besides_auth else json.dumps(connect.message).encode()
        for secret in (GOOD, *BAD):
            assert json.dumps(secret).encode()[1:-1] not in sent


@given(frames)
def test_beside_an_identity_the_frame_holds_no_credential(frame: dict[str, Any]) -> None:
    connect = read(json.dumps(frame).encode())
    if connect is not None:
        sent = json.loads(with_identity(connect, frozenset({"b", "a"})))
        assert not {"auth", "device"} & sent["params"].keys()
        assert sent["params"]["scopes"] == ["a", "b"]
        assert sent["id"] == frame["id"]


@given(frames, st.sampled_from(BAD))
def test_a_first_frame_with_a_bad_token_never_logs_in(frame: dict[str, Any], secret: str) -> None:
    frame["params"] = {"auth": {"password": secret}, "scopes": ["operator.read"]}
    connect = read(json.dumps(frame).encode())
    assert connect is not None
    try:
        authenticate(Request((), Client(UID), connect.secret, connect.scopes), POLICY, lambda token: verify(UID, token))
    except (RefusedError, TokenError):
        return
    raise AssertionError("a bad token was let through")


json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["cron.add", "1", "res", "req"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "method", "ok", "payload"]), inner)
    ),
).map(lambda value: json.dumps(value).encode())


@given(st.lists(st.tuples(st.booleans(), json_texts | st.binary(max_size=40)), max_size=8))
def test_no_message_disturbs_the_watch_over_what_is_left_behind(messages: list[tuple[bool, bytes]]) -> None:
    watch = Watch()
    for from_client, message in messages:
        if from_client:
            watch.request(message)
        else:
            trace = watch.answer(message)
            assert trace is None or (trace.name and len(trace.removal) <= 256)
