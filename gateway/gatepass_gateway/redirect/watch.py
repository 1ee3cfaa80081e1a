"""Keeping the tables in force until the service is stopped: a loop without an event loop, since nobody waits for it."""

from __future__ import annotations

import select
import signal
import socket
from contextlib import suppress
from typing import Final

import structlog

from gatepass.daemon.logs import SeldomWarning
from gatepass.daemon.systemd import Notifier
from gatepass_gateway.redirect.nft import NftError
from gatepass_gateway.redirect.tables import Tables

_log: structlog.stdlib.BoundLogger = structlog.get_logger("redirect")

LOOK_SECONDS: Final = 5.0
"""Longest time between two looks at the tables."""
REST_SECONDS: Final = 0.2
"""Shortest: others may change their rules a thousand times in a second."""

_NETLINK_NETFILTER: Final = 12
_NFNLGRP_NFTABLES: Final = 7
_QUEUE_BYTES: Final = 4096
"""What does not fit is lost, and that something was lost is an event too."""


class Changes:
    """Readable when anybody has changed any table. Takes CAP_NET_ADMIN."""

    def __init__(self) -> None:
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self._netlink.setblocking(False)
        self._netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _QUEUE_BYTES)
        self._netlink.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._netlink.fileno()

    def clear(self) -> None:
        """Forget what was changed so far."""
        for _ in range(_QUEUE_BYTES):
            try:
                self._netlink.recv(1)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: some were lost
                continue


class Signals:
    """Readable when a signal has come; afterwards `stop` says whether it was one that ends the service."""

    def __init__(self) -> None:
        self.stop: signal.Signals | None = None
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, lambda *_: _log.warning("a changed configuration takes a restart"))

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._reader.fileno()

    def clear(self) -> None:
        """Forget those that came so far."""
        with suppress(BlockingIOError):
            self._reader.recv(_QUEUE_BYTES)

    def _stop(self, number: int, _frame: object) -> None:
        self.stop = signal.Signals(number)


def watch(tables: Tables, changes: Changes, signals: Signals, notifier: Notifier) -> None:
    """Keep the tables in force until a signal comes that ends the service. Raise `LostError`.

    While the kernel does not let us look, the service manager's watchdog is not told that we are alive.
    """
    restored, blind = SeldomWarning("guard_restored"), SeldomWarning("tables_cannot_be_kept")
    period = min(LOOK_SECONDS, (notifier.watchdog_seconds or LOOK_SECONDS) / 2)
    while signals.stop is None:
        changes.clear()
        try:
            if tables.keep():
                restored.warn(reason="another program changed or removed it")
        except NftError as error:
            blind.warn(reason=error.reason)
        else:
            notifier.alive()
        _wait(REST_SECONDS, signals)
        if signals.stop is None:
            _wait(period - REST_SECONDS, signals, changes)
    _log.info("stopping", signal=signals.stop.name)


def _wait(seconds: float, signals: Signals, *others: Changes) -> None:
    poll = select.poll()
    poll.register(signals.fileno(), select.POLLIN)
    for changes in others:
        poll.register(changes.fileno(), select.POLLIN)
    poll.poll(max(0.0, seconds) * 1000)
    signals.clear()
