"""Who listens on a port of this machine."""

from __future__ import annotations

import os
import socket

import pytest

from gatepass.openclaw_setup.listeners import listener_on, users_listening


@pytest.mark.parametrize(
    ("address", "takes_local"), [("127.0.0.1", True), ("127.0.0.9", False), ("0.0.0.0", True), ("::1", False)]
)
def test_whoever_listens_at_any_address_is_found_and_only_who_takes_local_programs_is_the_listener(
    address: str, takes_local: bool
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        port = server.getsockname()[1]
        assert users_listening(port) == {os.geteuid()}
        assert (listener_on(port) is not None) is takes_local
        assert listener_on(port, address.replace("0.0.0.0", "127.0.0.2")) is not None
    assert users_listening(port) == frozenset()
