from __future__ import annotations

from gatepass.cli.lists import count, in_columns, members
from gatepass.cli.manners import plain
from gatepass.oversight import Enforced, Gateway, SessionList


def test_columns_are_aligned_and_nothing_is_cut_off() -> None:
    assert in_columns(("a", "long name"), [("1234", "x"), ("1", "y" * 200)]) == (
        f"a     long name\n1234  x\n1     {'y' * 200}"
    )


def test_a_cell_stays_on_its_line() -> None:
    assert in_columns(("a",), [("x\ny\x1b[2J",)]).splitlines() == ["a", r"x\ny\x1b[2J"]


def test_what_a_terminal_would_obey_is_shown_instead() -> None:
    assert plain("é ☃ plain") == "é ☃ plain"
    assert plain("\x1b]0;x\x07\r\n\x9b1m\u202e") == r"\x1b]0;x\x07\r\n\x9b1m\u202e"


def test_numbers_have_their_nouns() -> None:
    assert [count(number, "session") for number in range(3)] == ["no session", "1 session", "2 sessions"]


def test_values_become_json_by_the_names_of_their_members() -> None:
    assert members(SessionList((Gateway("g", 1, 2, True),), (), 0)) == {
        "gateways": [{"name": "g", "connected_since": 1, "seq": 2, "current": True}],
        "sessions": [],
        "more": 0,
    }
    assert members({"x": Enforced(1, 2, 3, ("a",), 4)})["x"]["waiting"] == ["a"]
