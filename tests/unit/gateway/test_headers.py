"""Which header fields pass."""

from __future__ import annotations

import pytest

from gatepass_gateway.headers import (
    Headers,
    allowed_with_identity,
    canonical_name,
    end_to_end,
    is_forwarding,
    values_of,
)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        (b"X-User", b"x-user"),
        (b"x_user", b"x-user"),
        (b"x-user.", b"x-user"),
        (b"x-user\t", b"x-user"),
        (b"x-user\0", b"x-user"),
        (b"x-user \t.\0", b"x-user"),
        (b"x-us.er", b"x-us.er"),
    ],
)
def test_a_name_is_read_as_the_most_lenient_server_would(name: bytes, canonical: bytes) -> None:
    assert canonical_name(name) == canonical


def test_values_are_found_in_any_spelling() -> None:
    headers: Headers = ((b"x_user", b"1"), (b"x-other", b"2"), (b"X-User", b"3"))

    assert values_of(headers, b"x-user") == [b"1", b"3"]


@pytest.mark.parametrize(
    "name",
    [b"forwarded", b"x-real-ip", b"x-forwarded-foo", b"x-forwarded", b"tailscale-user-name", b"cf-connecting-ip"],
)
def test_forwarding_fields_are_known(name: bytes) -> None:
    assert is_forwarding(name)


@pytest.mark.parametrize("name", [b"x-openclaw-model", b"forwarded-by-nobody", b"user-agent"])
def test_other_fields_are_no_forwarding_fields(name: bytes) -> None:
    assert not is_forwarding(name)


def test_what_ends_at_a_hop_does_not_pass() -> None:
    headers: Headers = (
        (b"connection", b"close, X-Named"),
        (b"x-named", b"1"),
        (b"transfer-encoding", b"chunked"),
        (b"te", b"trailers"),
        (b"upgrade", b"h2c"),
        (b"accept", b"*/*"),
    )

    assert end_to_end(headers) == ((b"accept", b"*/*"),)


@pytest.mark.parametrize("name", [b"host", b"content-length"])
def test_a_connection_header_cannot_take_away_what_the_message_needs(name: bytes) -> None:
    headers: Headers = ((b"connection", b"close, " + name), (name, b"1"))

    assert end_to_end(headers) == ((name, b"1"),)


def test_beside_an_identity_of_a_token_only_listed_fields_pass() -> None:
    headers: Headers = tuple(
        (name, b"1")
        for name in (
            b"accept", b"authorization", b"cookie", b"origin", b"host", b"x-openclaw-scopes", b"x-openclaw-model",
            b"x-forwarded-for", b"sec-fetch-site", b"access-control-request-method", b"content-length", b"x-mine",
        )
    )  # fmt: skip

    passed = allowed_with_identity(headers, from_reverse_proxy=False, extra=frozenset({b"x-mine"}))

    assert [name for name, _ in passed] == [b"accept", b"x-openclaw-model", b"content-length", b"x-mine"]


def test_the_reverse_proxy_may_bring_what_browsers_send_and_where_they_are() -> None:
    headers: Headers = tuple((name, b"1") for name in (b"cookie", b"origin", b"host", b"x-forwarded-for", b"x-evil"))

    passed = allowed_with_identity(headers, from_reverse_proxy=True, extra=frozenset())

    assert [name for name, _ in passed] == [b"cookie", b"origin", b"host", b"x-forwarded-for"]
