"""A daemon's log: one line per event on stderr, for the operator. What the broker decides is in its journal."""

from __future__ import annotations

import logging
import os
import socket
import stat
import sys
import time
from collections.abc import Hashable
from typing import Final, Literal

import structlog

MAX_KEYS: Final = 1_024
"""Keys of which a kind of warning is remembered; beyond, the oldest is forgotten."""
SELDOM: Final = 60.0
"""Seconds between two warnings of a kind."""

LogFormat = Literal["logfmt", "json"]


class SeldomWarning:
    """A warning that is written at most once a minute, with how often it was due since."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._next = 0.0
        self._times = 0

    def warn(self, **values: object) -> None:
        """Write it, with `values` of this occasion, or count it."""
        self._times += 1
        now = time.monotonic()
        if now >= self._next:
            structlog.stdlib.get_logger().warning(self._event, times=self._times, **values)
            self._next, self._times = now + SELDOM, 0


class SeldomPerKey:
    """Warnings of one kind, each key's at most once a minute: who repeats a fault must not fill the disk."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._warnings: dict[Hashable, SeldomWarning] = {}

    def warn(self, key: Hashable, **values: object) -> None:
        """Write a warning for `key`, with `values` of this occasion, or count it."""
        if key not in self._warnings and len(self._warnings) >= MAX_KEYS:
            del self._warnings[next(iter(self._warnings))]
        self._warnings.setdefault(key, SeldomWarning(self._event)).warn(**values)


class Lines:
    """Writes lines to a descriptor, and never fails: that nobody takes its log must not end a service.

    Nor does it wait where that is a socket, as systemd's journal is: what does not fit is lost, and counted.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_socket = descriptor >= 0 and stat.S_ISSOCK(os.fstat(descriptor).st_mode)
        self._rest = b""
        """Of a line that was taken in part."""
        self._lost = 0

    def write(self, line: str) -> None:
        """Write `line`, which comes without its end."""
        note = f"lines of this log that nobody took: {self._lost}\n" if self._lost else ""
        data = self._rest + f"{note}{line}\n".encode(errors="backslashreplace")
        sent = self._send(data)
        if sent > len(self._rest):
            self._rest, self._lost = data[sent:], 0
        else:
            self._rest, self._lost = self._rest[sent:], self._lost + 1

    def _send(self, data: bytes) -> int:
        """Return how many bytes were taken."""
        try:
            if not self._is_socket:
                return os.write(self._descriptor, data)
            taker = socket.socket(fileno=self._descriptor)
            try:
                return taker.send(data, socket.MSG_DONTWAIT)
            finally:
                taker.detach()
        except OSError:
            return 0

    debug = info = warning = error = critical = write
    """As structlog calls it."""


def configure_logs(form: LogFormat) -> None:
    """Write log lines to stderr as logfmt or JSON. No secret gets here: values are chosen at each call."""
    lines = Lines(sys.stderr.fileno() if sys.stderr else -1)  # None: it is closed, and its number another file's
    renderer = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=True,
    )
