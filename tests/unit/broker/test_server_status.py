"""The line that `systemctl status gatepass-broker` shows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gatepass_broker.server import Server


@pytest.mark.parametrize(("locked", "said"), [(False, False), (True, True)])
def test_a_lock_shows_in_the_status_of_the_service(locked: bool, said: bool) -> None:
    """It holds over restarts, so whoever looks why nobody gets in may not be the one who locked."""
    state = SimpleNamespace(issued=3, refused=0, locked=locked)
    broker = SimpleNamespace(state=state, is_all_recorded=True)
    settings, house = SimpleNamespace(rules=SimpleNamespace(rules=(1,))), SimpleNamespace(registry=())
    server = Server(cast("Any", settings), cast("Any", broker), cast("Any", house), ())
    assert ("locked: nothing is issued" in server.status) is said
