"""docs/troubleshooting.md has an entry for everything that gatepass says no with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from gatepass.errors import ErrorCode, GatepassError
from gatepass.openclaw import ASKED_BY_GATEWAY, NO_TOKEN_PREFIX
from gatepass_gateway.answers import answer
from gatepass_gateway.no_token import no_token_error

ROOT: Final = Path(__file__).parents[2]
FOLDERS: Final = ("client", "broker", "gateway")
PAGE: Final = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")

OPENCLAWS_REASONS: Final = (
    "trusted_proxy_user_missing",
    "trusted_proxy_loopback_source",
    "trusted_proxy_untrusted_source",
    "trusted_proxy_user_not_allowed",
    "trusted_proxy_missing_header_",
    "trusted_proxy_no_proxies_configured",
    "trusted_proxy_config_missing",
    "trusted_proxy_local_interface_source",
    "trusted_proxy_origin_not_allowed",
    "proxy_attribution_required",
    "missing scope",
    "pairing required",
    "device identity required",
    "device signature invalid",
    "exited with code N",
    "cannot win",
    "a shared token is also configured",
)
OF_THE_PROXY: Final = (
    ErrorCode.NO_TOKEN,
    ErrorCode.LOCKED,
    ErrorCode.SECRET_MISPLACED,
    ErrorCode.IDENTITY_FORGED,
    ErrorCode.IDENTITY_UNKNOWN,
    ErrorCode.FORWARDED,
    ErrorCode.BROWSER_ORIGIN,
    ErrorCode.DEVICE_LOGIN,
    ErrorCode.BAD_REQUEST,
    ErrorCode.TOO_MANY_CONNECTIONS,
    ErrorCode.UPSTREAM_UNAVAILABLE,
    ErrorCode.UPSTREAM_IMPOSTOR,
    ErrorCode.UNAVAILABLE,
)


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_code_has_an_entry(code: ErrorCode) -> None:
    assert re.search(rf"^### `{code}`\n\n\S", PAGE, re.MULTILINE)


@pytest.mark.parametrize("reason", OPENCLAWS_REASONS)
def test_every_reason_of_openclaw_has_an_entry(reason: str) -> None:
    assert re.search(rf"^### .*{re.escape(reason)}.*\n\n\S", PAGE, re.MULTILINE)


@pytest.mark.parametrize("reason", [*ErrorCode, ASKED_BY_GATEWAY])
def test_every_reason_for_no_token_has_an_entry_that_quotes_the_proxy(reason: str) -> None:
    """A reason without a sentence of its own gets the general one, which has an entry as well."""
    said = no_token_error(f"{NO_TOKEN_PREFIX}{reason}.AAAA").message.removeprefix("no token was issued, ")
    named = re.search(rf"^\| `{re.escape(NO_TOKEN_PREFIX)}{reason}` \| (.*?) \|", PAGE, re.MULTILINE)
    general = re.search(r"^\| any other \| (.*?) \|", PAGE, re.MULTILINE)
    entry = named or general
    assert entry is not None
    assert said.startswith(entry[1])


@pytest.mark.parametrize("code", OF_THE_PROXY)
def test_every_code_of_the_proxy_is_listed_under_its_http_status(code: ErrorCode) -> None:
    status = answer(GatepassError(code, "")).status
    row = re.search(rf"^\| {status} \| (.*) \|$", PAGE, re.MULTILINE)
    assert row is not None
    assert f"`{code}`" in row[1]


def test_quoted_messages_of_the_start_are_those_of_the_code() -> None:
    code = "\n".join(_joined_strings(path) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    starts = PAGE.partition("\n## The broker does not start\n")[2]
    quotes = [
        quote for cell in re.findall(r"^\| (`.*?) \|", starts, re.MULTILINE) for quote in re.findall("`(.*?)`", cell)
    ]
    assert len(quotes) > 30
    parts = [part.strip() for quote in quotes for part in quote.split("…")]  # names and numbers stand between them
    assert [part for part in parts if part not in code] == []


def _joined_strings(path: Path) -> str:
    """Return a module's text with string literals that are continued on the next line made one."""
    return re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))
