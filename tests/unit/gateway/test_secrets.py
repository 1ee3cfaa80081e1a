"""Recognising our secrets, and what is said about the secret that stands for none."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest

from gatepass.errors import ErrorCode
from gatepass.openclaw import ASKED_BY_GATEWAY, no_token
from gatepass_gateway.no_token import no_token_error
from gatepass_gateway.secret_shape import is_gatepass_shaped
from support.gateway import Minter

TOKEN = Minter().token()
NONE = no_token("unreachable", bytes(16))


def standard(token: str) -> str:
    """The same bytes in base64's other alphabet, padded."""
    parts = [part + "=" * (-len(part) % 4) for part in token.split(".")]
    return ".".join(parts).translate(str.maketrans("-_", "+/"))


@pytest.mark.parametrize(
    "secret",
    [
        TOKEN,
        f"Bearer {TOKEN}",
        f"theme=dark; session={TOKEN}; x=y",
        f"/path?token={TOKEN}&x=y",
        TOKEN.replace("e", "%65"),
        quote(TOKEN.replace(".", "/")),
        standard(TOKEN),
        TOKEN[:-5],
        TOKEN.rpartition(".")[0],
        TOKEN.partition(".")[0],
        TOKEN.upper() + TOKEN,
        f"key{TOKEN}",
        f"eyes{TOKEN}",
        f"e{TOKEN}",
        f"ey{TOKEN}",
        NONE,
        f"x{NONE}",
        NONE.upper(),
        f"?password={quote(NONE)}",
        NONE.replace("-", "%2d"),
    ],
)
def test_what_gatepass_made_is_recognised_however_it_is_wrapped(secret: str) -> None:
    assert is_gatepass_shaped(secret)


@pytest.mark.parametrize(
    "header",
    [
        '{"alg":"none","typ":"gatepass+jwt"}',
        '{"typ":"gatepass+jwt","alg":"HS256"}',
        '{ "alg" : "EdDSA", "typ" : "gatepass+jwt" }',
        '{"alg":"EdDSA","typ":"GATEPASS+JWT"}',
        '{"kid":"' + "x" * 100 + '","typ":"gatepass+jwt"}',
    ],
)
def test_what_pretends_to_be_a_token_is_recognised(header: str) -> None:
    encoded = base64.urlsafe_b64encode(header.encode()).rstrip(b"=").decode()

    assert is_gatepass_shaped(f"{encoded}.e30.c2ln")


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "gatepass",
        "gatepass-none",
        "correct horse battery staple",
        base64.urlsafe_b64encode(b'{"alg":"RS256","typ":"JWT"}').decode() + ".e30.c2ln",
        "eyJ" + "A" * 5_000,
        "\ud800",
        "%",
        "%zz%e",
        "e" * 10_000,
    ],
)
def test_what_others_made_is_left_alone(secret: str) -> None:
    assert not is_gatepass_shaped(secret)


@pytest.mark.parametrize(
    ("code", "says", "later"),
    [
        (ErrorCode.UNREACHABLE, "was not running", True),
        (ErrorCode.TIMEOUT, "did not answer in time", True),
        (ErrorCode.UNAVAILABLE, "cannot issue tokens now", True),
        (ErrorCode.RATE_LIMITED, "asked too often", True),
        (ErrorCode.CONNECT_AGAIN, "could not be certain", True),
        (ErrorCode.LOCKED, "until 'gatepass unlock'", False),
        (ErrorCode.PERMISSION, "may not open", False),
        (ErrorCode.DENIED, "grants this user nothing", False),
        (ErrorCode.IMPOSTOR, "is not the broker", False),
        (ASKED_BY_GATEWAY, "the gateway's own placeholder", False),
        ("a word of a later release", "'gatepass openclaw check' says why", False),
        ("", "'gatepass openclaw check' says why", False),
    ],
)
def test_a_secret_without_a_token_becomes_a_reason(code: str, says: str, later: bool) -> None:
    error = no_token_error(no_token(code, bytes(16)))

    assert error.code is ErrorCode.NO_TOKEN
    assert says in error.message
    assert (error.retry_after is not None) is later


def test_the_reason_never_repeats_what_the_client_wrote() -> None:
    assert "<script>" not in no_token_error("gatepass-none.<script>.x").message
