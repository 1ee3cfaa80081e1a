"""Reading JSON5, and changing one value in it and nothing else."""

from __future__ import annotations

import pytest

from gatepass.openclaw_setup.json5 import Json5Error, line_and_column, parse
from gatepass.openclaw_setup.json5_edit import remove_value, set_value

# The example of https://spec.json5.org, less what JSON has too.
SPECIFICATION = r"""
{
  // comments
  unquoted: 'and you can quote me on that',
  singleQuotes: 'I can use "double quotes" here',
  lineBreaks: "Look, Mom! \
No \\n's!",
  hexadecimal: 0xdecaf,
  leadingDecimalPoint: .8675309, andTrailing: 8675309.,
  positiveSign: +1,
  trailingComma: 'in objects', andIn: ['arrays',],
  "backwardsCompatible": "with JSON",
}
"""


def test_the_specifications_example_is_read() -> None:
    assert parse(SPECIFICATION).value == {
        "unquoted": "and you can quote me on that",
        "singleQuotes": 'I can use "double quotes" here',
        "lineBreaks": "Look, Mom! No \\n's!",
        "hexadecimal": 0xDECAF,
        "leadingDecimalPoint": 0.8675309,
        "andTrailing": 8675309.0,
        "positiveSign": 1,
        "trailingComma": "in objects",
        "andIn": ["arrays"],
        "backwardsCompatible": "with JSON",
    }


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("{", (1, 2), "the name of a key is missing here"),
        ("{\n a: [1, }", (2, 9), "a value is missing here, or is not one"),
        ("{ a: 1\n  b: 2 }", (2, 3), "a ',' or '}' is missing here"),
        ("{ a 1 }", (1, 5), "a ':' is missing here"),
        ("{ a: 1 } }", (1, 10), "there is something after the end"),
        ("{ a: 1, 'a': 2 }", (1, 9), "the key 'a' stands twice in one object"),
        ("{ a: undefined }", (1, 6), "a value is missing here, or is not one"),
        ('{ a: "x\n" }', (1, 6), "a value is missing here, or is not one"),
        ("", (1, 1), "a value is missing here, or is not one"),
        ("[" * 300, (1, 202), "this is nested too deeply"),
    ],
)
def test_what_is_not_json5_is_refused_with_its_place(text: str, place: tuple[int, int], message: str) -> None:
    with pytest.raises(Json5Error, match=message) as caught:
        parse(text)
    assert line_and_column(text, caught.value.position) == place


@pytest.mark.parametrize(
    ("before", "path", "value", "after"),
    [
        ('{ a: "x", b: 2 }', ("a",), 1, "{ a: 1, b: 2 }"),
        ("{ a: 1 }", ("b",), 2, '{ a: 1, "b": 2 }'),
        ("{ a: 1, }", ("b",), 2, '{ a: 1, "b": 2, }'),
        ("{\n    a: 1 // one\n}\n", ("b",), [2], '{\n    a: 1, // one\n    "b": [\n      2\n    ]\n}\n'),
        ("{ a: 1 // one\n}", ("b",), 2, '{ a: 1, // one\n"b": 2\n}'),
        ("{}", ("a", "b"), True, '{\n  "a": {\n    "b": true\n  }\n}'),
        ("{ // empty\n}", ("a",), 1, '{ // empty\n  "a": 1\n}'),
        ("{ a: { b: 1 } }", ("a", "c"), {"d": []}, '{ a: { b: 1, "c": {"d": []} } }'),
    ],
)
def test_a_value_is_set_and_every_other_byte_stays(
    before: str, path: tuple[str, ...], value: object, after: str
) -> None:
    assert set_value(before, path, value) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{ x: 1 }", "{ }"),
        ("{ x: 1, a: 2 }", "{ a: 2 }"),
        ("{ a: 2, x: 1 }", "{ a: 2 }"),
        ("{ a: 2, x: 1, }", "{ a: 2, }"),
        ("{\n  a: 2, // two\n  x: 1\n}", "{\n  a: 2 // two\n}"),
        ("{ a: 2, // two\n  x: 1 }", "{ a: 2 // two\n }"),
    ],
)
def test_a_member_is_removed_and_comments_stay(before: str, after: str) -> None:
    assert remove_value(before, ("x",)) == after
