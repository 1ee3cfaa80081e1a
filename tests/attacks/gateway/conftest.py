"""Attacks run on one event loop: what is refused does not depend on it, and the integration tests run on both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.hierarchy import Hierarchy, own_hierarchy


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def hierarchy() -> Iterator[Hierarchy]:
    """Return a slice of cgroups, all the test's own."""
    with own_hierarchy() as hierarchy:
        yield hierarchy
