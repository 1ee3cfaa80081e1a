"""Whatever a person's JSON5 looks like, an edit changes the one value and leaves what can still be read."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gatepass.openclaw_setup.json5 import parse
from gatepass.openclaw_setup.json5_edit import remove_value, set_value

KEYS = st.sampled_from("abcde")
GAPS = st.sampled_from(["", " ", "\n  ", "\t", "/* , } */", " // , }\n", "\ufeff"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-99, 99), st.text(max_size=4))


@st.composite
def objects(draw: st.DrawFn, depth: int = 0) -> tuple[dict[str, Any], str]:
    """Return an object and one of the ways to write it."""
    value: dict[str, Any] = {}
    members = []
    for key in draw(st.lists(KEYS, unique=True, max_size=3)):
        value[key], text = draw(_values(depth))
        name = draw(st.sampled_from([key, f"'{key}'", f'"{key}"']))
        members.append(draw(GAPS) + name + draw(GAPS) + ":" + draw(GAPS) + text + draw(GAPS))
    trailing = draw(st.sampled_from(["", ","])) if members else ""
    return value, "{" + ",".join(members) + trailing + draw(GAPS) + "}"


def _values(depth: int) -> st.SearchStrategy[tuple[Any, str]]:
    scalars = SCALARS.map(lambda value: (value, json.dumps(value)))
    return st.one_of(scalars, objects(depth + 1)) if depth < 3 else scalars


@given(objects(), st.lists(KEYS, min_size=1, max_size=3), st.sampled_from([1, "x", [1, 2], {"k": {"l": []}}, {}]))
def test_setting_a_value_changes_that_value_only(
    document: tuple[dict[str, Any], str], path: list[str], new: Any
) -> None:
    value, text = document
    assert parse(text).value == value
    expected = copy.deepcopy(value)
    parent = expected
    for key in path[:-1]:
        parent = parent.setdefault(key, {})
        if not isinstance(parent, dict):
            return  # a value that is no object stands in the way: refused before anything is edited
    parent[path[-1]] = new
    assert parse(set_value(text, path, new)).value == expected


@given(objects(), st.data())
def test_removing_a_member_removes_that_member_only(document: tuple[dict[str, Any], str], data: st.DataObject) -> None:
    value, text = document
    expected, path = copy.deepcopy(value), []
    parent = expected
    while parent:
        path.append(data.draw(st.sampled_from(sorted(parent))))
        inner = parent[path[-1]]
        if not isinstance(inner, dict) or not inner or data.draw(st.booleans()):
            del parent[path[-1]]
            break
        parent = inner
    if path:
        assert parse(remove_value(text, path)).value == expected
