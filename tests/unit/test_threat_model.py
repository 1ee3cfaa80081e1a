"""docs/threat-model.md names only tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "threat-model.md"
NAMED = re.compile(r"`((?:unit|property|integration|attacks|e2e)/[\w/]+\.py)(?:::(\w+))?`")


def test_every_test_behind_a_promise_exists() -> None:
    named = NAMED.findall(PAGE.read_text())
    assert len(named) > 15
    for path, function in named:
        source = (TESTS / path).read_text()
        assert not function or re.search(rf"^(async )?def {function}\(", source, re.MULTILINE), f"{path}::{function}"
