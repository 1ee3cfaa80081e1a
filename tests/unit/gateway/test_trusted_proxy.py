"""`authenticate`: every row of the table that decides whose request it is."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest

from gatepass.claims import BootDeadline, Claims, Confirmation
from gatepass.errors import ErrorCode, GatepassError, TokenError
from gatepass_gateway.trusted_proxy import Client, Identity, IdentityPolicy, Request, authenticate

LOCAL = Client(1000)
REVERSE_PROXY = Client(900, is_reverse_proxy=True)
USER_HEADER = b"x-auth-request-email"
SCOPES_HEADER = b"x-openclaw-scopes"
POLICY = IdentityPolicy(
    user_header=USER_HEADER,
    scopes_header=SCOPES_HEADER,
    users={"derek@example.com": frozenset({"operator.read", "operator.write"})},
)
CLAIMS = Claims(
    issuer="gatepass:test",
    subject="derek@example.com",
    audience="openclaw",
    issued_at=1,
    expires_at=2,
    token_id="the-jti",
    scope=("operator.admin", "operator.read"),
    actors=("uid:1000",),
    confirmation=Confirmation(1000),
    boot=BootDeadline("0" * 32, 1),
)
TOKEN = "eyJhbGciOiJFZERTQSIsImtpZCI6IngiLCJ0eXAiOiJnYXRlcGFzcytqd3QifQ.e30.c2ln"
IDENTITY_HEADER = (USER_HEADER, b"derek@example.com")


def accept(token: str) -> Claims:
    assert token == TOKEN
    return CLAIMS


def reject(token: str) -> NoReturn:
    raise TokenError(ErrorCode.TOKEN_EXPIRED, "expired")


def unused(token: str) -> NoReturn:
    raise AssertionError("no token was to be verified")


def decide(request: Request, verify: Any = unused, policy: IdentityPolicy = POLICY) -> Identity | None:
    return authenticate(request, policy, verify)


def refusal(request: Request, verify: Any = unused) -> GatepassError:
    with pytest.raises(GatepassError) as caught:
        decide(request, verify)
    return caught.value


def test_a_request_without_anything_has_no_identity() -> None:
    assert decide(Request((), LOCAL)) is None


@pytest.mark.parametrize("secret", ["", "the gateway's password", "eyJhbGciOiJIUzI1NiJ9.e30.c2ln", "gatepass"])
def test_a_secret_that_is_not_ours_gives_no_identity_and_is_not_looked_at(secret: str) -> None:
    assert decide(Request((), LOCAL, secret)) is None


def test_a_good_token_gives_its_subject_and_the_scopes_that_token_and_configuration_share() -> None:
    identity = decide(Request((), LOCAL, TOKEN), accept)

    assert identity == Identity("derek@example.com", frozenset({"operator.read"}), CLAIMS)


@pytest.mark.parametrize(
    ("requested", "granted"),
    [
        (frozenset({"operator.read", "operator.admin"}), {"operator.read"}),
        (frozenset({"operator.admin"}), set()),
        (frozenset(), set()),
        (None, {"operator.read"}),
    ],
)
def test_a_connect_frame_gets_no_scope_that_it_did_not_ask_for(
    requested: frozenset[str] | None, granted: set[str]
) -> None:
    identity = decide(Request((), LOCAL, TOKEN, requested), accept)

    assert identity == Identity("derek@example.com", frozenset(granted), CLAIMS)


def test_a_token_that_does_not_verify_is_an_error_and_not_a_request_without_identity() -> None:
    assert refusal(Request((), LOCAL, TOKEN), reject).code is ErrorCode.TOKEN_EXPIRED


def test_a_subject_that_is_not_configured_is_refused_even_with_a_good_token() -> None:
    policy = POLICY._replace(users={"DEREK@example.com": frozenset({"operator.read"})})

    with pytest.raises(GatepassError) as caught:
        decide(Request((), LOCAL, TOKEN), accept, policy)
    assert caught.value.code is ErrorCode.IDENTITY_UNKNOWN
    assert "[identity.users]" in caught.value.message


def test_a_token_beside_an_origin_header_is_refused_before_it_is_verified() -> None:
    error = refusal(Request(((b"origin", b"http://evil.example"),), LOCAL, TOKEN))

    assert error.code is ErrorCode.BROWSER_ORIGIN


def test_an_origin_header_without_a_token_is_for_the_gateway_to_judge() -> None:
    assert decide(Request(((b"origin", b"http://evil.example"),), LOCAL)) is None


@pytest.mark.parametrize(
    "name",
    [
        USER_HEADER,
        b"x_auth_request_email",
        b"x-auth_request-email",
        b"X-Auth-Request-Email",
        b"x-auth-request-email.",
        b"x-auth-request-email\t",
        b"x-auth-request-email\0",
        b" x-auth-request-email ",
        b"_x-auth-request-email".removeprefix(b"_"),
    ],
)
@pytest.mark.parametrize("secret", [None, TOKEN])
def test_the_identity_header_from_a_local_process_is_refused_in_every_spelling(name: bytes, secret: str | None) -> None:
    error = refusal(Request(((name, b"derek@example.com"),), LOCAL, secret))

    assert error.code is ErrorCode.IDENTITY_FORGED


@pytest.mark.parametrize(
    "name", [b"forwarded", b"x-forwarded-for", b"x_forwarded_for", b"x-real-ip", b"tailscale-user-login", b"via"]
)
@pytest.mark.parametrize("secret", [None, TOKEN])
def test_forwarding_headers_from_a_local_process_are_refused_also_beside_a_token(
    name: bytes, secret: str | None
) -> None:
    error = refusal(Request(((name, b"1.2.3.4"),), LOCAL, secret))

    assert error.code is ErrorCode.FORWARDED


@pytest.mark.parametrize("uid", [None, 1000, 0, 900])
def test_only_the_reverse_proxy_may_bring_the_identity_header(uid: int | None) -> None:
    """Also its own user may not, where the operator named a unit besides and the connection is from elsewhere."""
    assert refusal(Request((IDENTITY_HEADER,), Client(uid))).code is ErrorCode.IDENTITY_FORGED


def test_the_reverse_proxy_brings_the_identity_and_leaves_the_scopes_to_the_gateway() -> None:
    headers = (IDENTITY_HEADER, (b"x-forwarded-for", b"9.9.9.9"), (b"origin", b"https://gateway.example"))

    assert decide(Request(headers, REVERSE_PROXY)) == Identity("derek@example.com", None, None)


@pytest.mark.parametrize(
    ("value", "scopes"),
    [(b"operator.read, operator.write", {"operator.read", "operator.write"}), (b"", set()), (b" , ", set())],
)
def test_the_scopes_header_of_the_reverse_proxy_counts(value: bytes, scopes: set[str]) -> None:
    identity = decide(Request((IDENTITY_HEADER, (SCOPES_HEADER, value)), REVERSE_PROXY))

    assert identity == Identity("derek@example.com", frozenset(scopes), None)


def test_the_reverse_proxy_without_an_identity_header_speaks_for_nobody() -> None:
    forwarded = ((b"x-forwarded-for", b"9.9.9.9"),)

    assert decide(Request(forwarded, REVERSE_PROXY)) is None
    assert decide(Request(forwarded, REVERSE_PROXY, TOKEN)) is None


def test_a_reverse_proxy_that_hides_where_a_request_comes_from_is_refused() -> None:
    assert refusal(Request((), REVERSE_PROXY)).code is ErrorCode.FORWARDED


@pytest.mark.parametrize(
    "headers",
    [
        (IDENTITY_HEADER, IDENTITY_HEADER),
        (IDENTITY_HEADER, (b"X_Auth_Request_Email", b"mallory@example.com")),
        ((USER_HEADER, b""),),
        ((USER_HEADER, b" "),),
        ((USER_HEADER, b"derek\x01@example.com"),),
        (IDENTITY_HEADER, (SCOPES_HEADER, b"a"), (b"x_openclaw_scopes", b"b")),
    ],
)
def test_a_reverse_proxy_that_lets_the_clients_own_header_through_is_refused(
    headers: tuple[tuple[bytes, bytes], ...],
) -> None:
    assert refusal(Request(headers, REVERSE_PROXY)).code is ErrorCode.IDENTITY_FORGED


def test_a_token_through_the_reverse_proxy_is_refused() -> None:
    assert refusal(Request((IDENTITY_HEADER,), REVERSE_PROXY, TOKEN)).code is ErrorCode.SECRET_MISPLACED


def test_the_secret_that_stands_for_no_token_is_refused_with_its_reason() -> None:
    error = refusal(Request((), LOCAL, "gatepass-none.denied.AAAA"))

    assert error.code is ErrorCode.NO_TOKEN
    assert "grants this user nothing" in error.message


@pytest.mark.parametrize(
    "field",
    [
        (b"x_auth_request_email", b"derek@example.com"),
        (b"x-auth-request-email.", b"derek@example.com"),
        (USER_HEADER, b" derek@example.com"),
        (USER_HEADER, "\u00a0derek@example.com".encode()),
        (USER_HEADER, "derek@example.com\u3000".encode()),
        (USER_HEADER, b"derek@example.com\xff"),
    ],
    ids=ascii,
)
def test_the_reverse_proxys_header_counts_in_its_exact_spelling_with_an_exact_name(field: tuple[bytes, bytes]) -> None:
    assert refusal(Request((field, (b"x-forwarded-for", b"9.9.9.9")), REVERSE_PROXY)).code is ErrorCode.IDENTITY_FORGED


@pytest.mark.parametrize(
    "field", [(b"x_openclaw_scopes", b"operator.admin"), (SCOPES_HEADER, "operator.r\u00e9ad".encode())], ids=ascii
)
def test_the_reverse_proxys_scopes_count_in_their_exact_spelling(field: tuple[bytes, bytes]) -> None:
    assert refusal(Request((IDENTITY_HEADER, field), REVERSE_PROXY)).code is ErrorCode.IDENTITY_FORGED
