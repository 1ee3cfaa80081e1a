"""What setup notes of several runs."""

from __future__ import annotations

import pytest

from gatepass.openclaw_setup.desired import ABSENT, Change
from gatepass.openclaw_setup.json5 import parse
from gatepass.openclaw_setup.restore import Written, all_written, changed_since, restored

NOTED = (Written(("a", "b"), {"c": 1}), Written(("token",), ABSENT))


@pytest.mark.parametrize(
    ("change", "noted"),
    [
        (Change(("x",), 1, 2, ""), (*NOTED, Written(("x",), 2))),
        (Change(("a", "b"), {"c": 1}, 5, ""), (Written(("a", "b"), 5), NOTED[1])),
        (Change(("a", "b", "c"), 1, 2, ""), (Written(("a", "b"), {"c": 2}), NOTED[1])),
        (Change(("a", "b", "d", "e"), ABSENT, 2, ""), (Written(("a", "b"), {"c": 1, "d": {"e": 2}}), NOTED[1])),
        (Change(("a",), ABSENT, {"b": 2}, ""), (NOTED[1], Written(("a",), {"b": 2}))),
    ],
    ids=["another", "the same again", "within", "deep within", "around"],
)
def test_no_path_leads_into_another_value(change: Change, noted: tuple[Written, ...]) -> None:
    assert all_written(NOTED, [change]) == noted


@pytest.mark.parametrize(
    ("before", "written", "now", "left"),
    [
        ('{"k": ["a"]}', ["own", "a"], '{"k": ["own", "a", "new"]}', '{"k": ["a", "new"]}'),
        ('{"k": ["lo", "a"]}', ["own", "a"], '{"k": ["own"]}', '{"k": ["lo"]}'),
        ('{"k": ["a"]}', ["own", "a"], '{"k": ["own", "a"]}', '{"k": ["a"]}'),
        ('{"k": ["a"]}', ["own"], '{"k": ["own", "a"]}', '{"k": ["a"]}'),
        ("{}", ["own"], '{"k": ["new", "own"]}', '{"k": ["new"]}'),
        ("{}", ["own"], '{"k": []}', "{}"),
        ('{"k": "a"}', ["own"], '{"k": ["own"]}', '{"k": "a"}'),
        ('{"k": ["a"]}', ["own"], '{"k": ["a"]}', '{"k": ["a"]}'),
    ],
)
def test_of_a_list_the_entries_of_setup_go(before: str, written: list[str], now: str, left: str) -> None:
    noted = [Written(("k",), written)]
    assert changed_since(parse(before), parse(now), noted) == ()
    assert parse(restored(parse(before), now, noted)).value == parse(left).value


@pytest.mark.parametrize("now", ['{"k": "x"}', '{"k": {}}', "{}", '{"k": null}'])
def test_another_kind_of_value_is_nobodys_to_judge(now: str) -> None:
    noted = [Written(("k",), ["own"])]
    assert changed_since(parse('{"k": ["a"]}'), parse(now), noted) == (("k",),)
