"""A daemon's log: what anybody can cause does not fill the disk, and who does not take it holds nothing up."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import pytest
import structlog.testing

from gatepass.daemon import logs
from gatepass.daemon.logs import Lines, SeldomPerKey


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


def test_a_log_that_nobody_reads_holds_nothing_up_and_says_what_is_missing() -> None:
    """systemd's journal hangs: a write that waits for it would hold up every client."""
    reader, writer = socket.socketpair()
    with reader, writer:
        lines = Lines(writer.fileno())
        for number in range(5_000):
            lines.write(f"{number} " + "x" * 500)  # more than any queue takes
        said = read_now(reader)
        lines.write("at last")
        said += read_now(reader)
    *taken, missing, last = said.decode().splitlines()
    assert last == "at last"
    assert missing == f"lines of this log that nobody took: {5_000 - len(taken)}"
    assert taken == [f"{number} " + "x" * 500 for number in range(len(taken))]


def test_a_log_whose_reader_is_gone_ends_nothing() -> None:
    """systemd's journal was stopped and started: the stream to the one before is broken for good."""
    reader, writer = socket.socketpair()
    with writer:
        lines = Lines(writer.fileno())
        reader.close()
        lines.write("into the void")


def test_a_disk_that_is_full_ends_nothing() -> None:
    with Path("/dev/full").open("wb") as full:
        Lines(full.fileno()).write("into the void")


def read_now(reader: socket.socket) -> bytes:
    reader.setblocking(False)
    said = b""
    with suppress(BlockingIOError):
        while part := reader.recv(65_536):
            said += part
    return said
