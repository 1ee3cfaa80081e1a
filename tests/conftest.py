"""What every test shares: async tests run on both event loops that gatepass runs on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from blockbuster import blockbuster_ctx


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run each async test once on each loop."""
    backend: tuple[str, dict[str, Any]] = request.param
    return backend


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail an async test in which the proxy or the async client makes a call that could hold up everybody else.

    Allowed are the configuration and the earlier logins, which are read when there is nobody to hold up yet, netlink,
    which answers inside `send`, the cgroups' file system, which is all in memory, and the small local key file. The
    broker is left out: it writes its journal before it answers, on purpose.
    """
    if "anyio_backend" not in request.fixturenames:
        yield
        return
    with blockbuster_ctx(scanned_modules=["gatepass_gateway", "gatepass.aio"]) as watch:
        for function in watch.functions.values():
            function.can_block_in("gatepass_gateway/config.py", {"resolve"})
            function.can_block_in("gatepass_gateway/sock_diag.py", {"_ask", "_dump"})
            function.can_block_in("gatepass_gateway/keys.py", {"current", "_read"})
            function.can_block_in("gatepass_gateway/followed_broker.py", {"_follow"})
            function.can_block_in("gatepass_gateway/earlier_logins.py", {"_read"})
            function.can_block_in("gatepass_gateway/server.py", {"_logins_file"})
            function.can_block_in("gatepass/clock.py", {"boot_id"})
            function.can_block_in("gatepass/daemon/cgroups.py", {"of_this_machine", "id", "_children", "_has_children"})
            function.can_block_in("gatepass/daemon/processes.py", {"has_exited"})
            function.can_block_in("gatepass_gateway/units.py", {"of_this_machine", "hold"})
        yield
