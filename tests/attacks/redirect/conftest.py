"""What the attacks on the redirect share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from attacks.redirect.machine import Machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A host without rules, on which the gateway is open to everybody."""
    with Machine() as machine:
        yield machine
