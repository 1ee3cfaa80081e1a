"""A daemon's log: one line per event on stderr, for the operator. What the broker decides is in its journal."""

from __future__ import annotations

import logging
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


def configure_logs(form: LogFormat) -> None:
    """Write log lines to stderr as logfmt or JSON. No secret gets here: values are chosen at each call."""
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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
