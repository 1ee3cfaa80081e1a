"""Warnings that anybody can cause do not fill the disk."""

from __future__ import annotations

import pytest
import structlog.testing

from gatepass.daemon import logs
from gatepass.daemon.logs import SeldomPerKey


def test_each_key_is_told_once_a_minute_with_how_often_it_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("gatepass.daemon.logs.time.monotonic", lambda: now)
    refused = SeldomPerKey("refused")
    with structlog.testing.capture_logs() as written:
        for uid in (1, 1, 2, 1):
            refused.warn(uid, uid=uid)
        now = 61.0
        refused.warn(1, uid=1)

    assert [(entry["uid"], entry["times"]) for entry in written] == [(1, 1), (2, 1), (1, 3)]


def test_keys_are_bounded() -> None:
    refused = SeldomPerKey("refused")
    with structlog.testing.capture_logs():
        for key in range(logs.MAX_KEYS + 10):
            refused.warn(key)
    assert len(refused._warnings) == logs.MAX_KEYS
