"""Undoing takes back what setup has written, and nothing else, whatever was there before and has come since."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gatepass.openclaw_setup.choose import Asked
from gatepass.openclaw_setup.desired import apply
from gatepass.openclaw_setup.json5 import parse
from gatepass.openclaw_setup.json5_edit import set_value
from gatepass.openclaw_setup.plan import Found, make_plan
from gatepass.openclaw_setup.record import Record, from_text, to_text
from gatepass.openclaw_setup.restore import all_written, changed_since, restored

USER = "derek@example.com"
SCOPES = ("operator.admin", "operator.read")
OPTIONAL: dict[tuple[str, ...], st.SearchStrategy[Any]] = {
    ("gateway", "mode"): st.just("local"),
    ("gateway", "port"): st.integers(1_024, 60_000),
    ("gateway", "trustedProxies"): st.lists(st.sampled_from(["192.0.2.7", "127.0.0.1", "2001:db8::1"]), unique=True),
    ("gateway", "auth", "mode"): st.sampled_from(["token", "password", "trusted-proxy", "none"]),
    ("gateway", "auth", "token"): st.just("a shared secret"),
    ("gateway", "auth", "password"): st.just("another"),
    ("gateway", "auth", "trustedProxy", "userHeader"): st.just("x-auth-request-email"),
    ("gateway", "auth", "trustedProxy", "allowUsers"): st.lists(st.sampled_from(["alice@example.com", USER])),
    ("gateway", "auth", "trustedProxy", "allowLoopback"): st.sampled_from([True, False, 1, 0]),
    ("gateway", "auth", "identityScopes"): st.just({"alice@example.com": ["operator.read"]}),
    ("secrets", "providers", "vault"): st.just({"source": "exec", "command": "/usr/bin/vault"}),
    ("secrets", "providers", "gatepass"): st.just({"source": "exec", "timeoutMs": 1}),
    ("agents", "defaults"): st.just({"model": "x"}),
}
LATER: dict[tuple[str, ...], Any] = {
    ("gateway", "reload", "mode"): "hybrid",
    ("gateway", "auth", "identityScopes", "new@example.com"): ["operator.read"],
    ("gateway", "auth", "rateLimit"): {"maxAttempts": 3},
    ("secrets", "providers", "other"): {"source": "env"},
    ("agents", "list"): [{"id": "main"}],
    ("meta",): {"lastTouchedVersion": "2026.9.6"},
}
"""What people and OpenClaw write where setup writes nothing, in objects that setup may have made."""

WAYS = st.sampled_from([None, 0, 2])
"""How a JSON text is laid out: on one line, or indented."""


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Return a configuration from before setup."""
    whole: dict[str, Any] = {}
    for path in draw(st.lists(st.sampled_from(sorted(OPTIONAL)), unique=True)):
        put(whole, path, draw(OPTIONAL[path]))
    return whole


def put(whole: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set the value at `path`."""
    for key in path[:-1]:
        whole = whole.setdefault(key, {})
    whole[path[-1]] = value


def found(text: str, proxy_text: str | None) -> Found:
    """What setup finds."""
    return Found("openclaw.json", text, "gateway.toml", proxy_text, "/launcher", 1000, "/gatepass", SCOPES, "0" * 32)


@given(
    configurations(),
    WAYS,
    st.lists(st.sampled_from(sorted(LATER)), unique=True),
    st.lists(st.sampled_from([("operator.read",), SCOPES]), min_size=1, max_size=3),
    st.booleans(),
)
def test_what_is_left_after_undoing_is_what_was_there_and_what_has_come_since(
    before: dict[str, Any], indent: int | None, later: list[tuple[str, ...]], setups: list[Any], rewritten: bool
) -> None:
    original = text = json.dumps(before, indent=indent)
    proxy_text, written = None, ()
    for scopes in setups:
        made = make_plan(found(text, proxy_text), Asked(user=USER, scopes=scopes))
        text, proxy_text = made.config_text, made.proxy_text
        written = remembered(all_written(written, made.changes))
    expected = copy.deepcopy(before)
    for path in later:
        text = set_value(text, path, LATER[path])
        put(expected, path, LATER[path])
    if rewritten:
        text = json.dumps(parse(text).value)
    assert changed_since(parse(original), parse(text), written) == ()
    left = parse(restored(parse(original), text, written)).value
    assert json.dumps(left, sort_keys=True) == json.dumps(expected, sort_keys=True)  # where 1 is not true


def remembered(written: Any) -> Any:
    """Return what the notes of a setup have of it."""
    return from_text(to_text(Record("", "", "", "", {}, 0, False, written)), "").written


@given(configurations(), st.data())
def test_another_value_over_one_of_setups_is_noticed(before: dict[str, Any], data: st.DataObject) -> None:
    original = json.dumps(before)
    made = make_plan(found(original, None), Asked(user=USER))
    changed = data.draw(st.sampled_from(made.changes))
    text = set_value(apply(original, made.changes), changed.path, "something else")
    assert changed.path in changed_since(parse(original), parse(text), all_written((), made.changes))
