"""What every test shares: async tests run on both event loops that gatepass runs on.

On one of them in `make test`, half of the tests on each; on the other one in `make e2e`, which has more time.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from blockbuster import blockbuster_ctx


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say which loops async tests run on."""
    parser.addoption("--loops", choices=("one", "other", "both"), default="both", help="event loops of async tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the other one of each test's two loops, or with `--loops other` whatever `--loops one` runs."""
    loops = config.getoption("--loops")
    if loops == "both":
        return
    chosen: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        (chosen if _is_of_the_one_run(item) is (loops == "one") else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = chosen


def _is_of_the_one_run(item: pytest.Item) -> bool:
    """Whether a test is without a loop, or on the one that its name chooses for it."""
    callspec = getattr(item, "callspec", None)
    backend = None if callspec is None else callspec.params.get("anyio_backend")
    if not isinstance(backend, tuple):  # none, or the one loop that it is for
        return True
    name = item.nodeid.replace("uvloop", "").replace("asyncio", "")
    return backend[1]["use_uvloop"] is bool(zlib.crc32(name.encode()) % 2)


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
def _the_umask_stays() -> Iterator[None]:
    """Undo what a daemon's command, run within a test, does to the whole process: later tests make files for others."""
    umask = os.umask(0o022)
    os.umask(umask)
    yield
    os.umask(umask)


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
