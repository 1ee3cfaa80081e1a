"""Where the trusted keys come from: the broker's socket, followed as long as the proxy runs, or a JWKS file."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import anyio
import structlog
from anyio.abc import SocketStream

from gatepass.daemon.logs import SeldomWarning
from gatepass.errors import ConfigurationError, GatepassError, ProtocolError
from gatepass.frames import MAX_FRAME, FrameDecoder, encode_frame
from gatepass.messages import FollowRequest, Request, field, parse_reply, request_message
from gatepass.server_identity import check_path, check_place, check_server
from gatepass_gateway.verifier import KeySet, key_set

_log: structlog.stdlib.BoundLogger = structlog.get_logger("keys")

_FIRST_RETRY_SECONDS: Final = 0.1
_LONGEST_RETRY_SECONDS: Final = 2.0
_REFRESH_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 5.0
_MAX_JWKS_BYTES: Final = 1_000_000
_REQUEST_ID: Final = 1


class KeySource(Protocol):
    """Somebody who knows the broker's keys."""

    @property
    def current(self) -> KeySet:
        """The keys as last heard of; the empty set before the first word."""

    async def run(self) -> None:
        """Keep `current` up to date, without end."""

    async def refreshed(self) -> bool:
        """Look again because a token names an unknown key. Return whether `current` has changed since."""


class BrokerKeys:
    """Follows the broker over its socket. When the broker is gone, what it said last stays in force."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._current = KeySet()
        self._connected = False
        self._changed = anyio.Event()
        self._poke = anyio.Event()
        self._gone = SeldomWarning("keys_not_followed")

    @property
    def current(self) -> KeySet:
        """The keys as last heard of; the empty set before the first word."""
        return self._current

    async def run(self) -> None:
        """Follow, and connect again whenever the broker was gone."""
        delay = _FIRST_RETRY_SECONDS
        while True:
            try:
                await self._follow()
            except (GatepassError, OSError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
                delay = _FIRST_RETRY_SECONDS if self._connected else min(delay * 2, _LONGEST_RETRY_SECONDS)
                self._connected = False
                # The type stands in for errors without text, such as the end of the stream.
                self._gone.warn(socket=self._path, reason=str(error) or type(error).__name__)
            self._poke = anyio.Event()
            with anyio.move_on_after(delay):
                await self._poke.wait()

    async def refreshed(self) -> bool:
        """Connect at once instead of at the next attempt, and wait a moment for what the broker says.

        A connected broker has said everything: it publishes a key before it signs with it.
        """
        if self._connected:
            return False
        before, changed = self._current, self._changed
        self._poke.set()
        with anyio.move_on_after(_REFRESH_SECONDS):
            await changed.wait()
        return self._current != before

    async def _follow(self) -> None:
        owner = check_path(self._path)
        async with await anyio.connect_unix(self._path) as stream:
            check_server(stream.extra(anyio.abc.SocketAttribute.raw_socket), self._path, owner)
            await stream.send(encode_frame(request_message(Request(_REQUEST_ID, FollowRequest()))))
            decoder = FrameDecoder()
            with anyio.fail_after(_ANSWER_SECONDS):
                await self._take_next(stream, decoder)
            self._connected = True
            while True:
                await self._take_next(stream, decoder)

    async def _take_next(self, stream: SocketStream, decoder: FrameDecoder) -> None:
        while (message := decoder.next_message()) is None:
            decoder.feed(await stream.receive(MAX_FRAME))
        result = parse_reply(message, _REQUEST_ID)
        try:
            self._current = key_set(field(result, "issuer", str), field(result, "keys", list))
        except (ValueError, AttributeError, TypeError) as error:
            raise ProtocolError(f"the broker's keys cannot be used: {error}") from None
        self._changed.set()
        self._changed = anyio.Event()
        _log.info("keys", issuer=self._current.issuer, keys=[key.kid for key in self._current.table.values()])


class JwksFileKeys:
    """Reads a JWK set (RFC 7517 section 5) from a file, again whenever the file was replaced."""

    def __init__(self, path: Path, issuer: str | None) -> None:
        self._path = path
        self._issuer = issuer
        self._seen: tuple[int, ...] | None = None
        self._current = KeySet()
        self._unreadable = SeldomWarning("keys_unreadable")

    @property
    def current(self) -> KeySet:
        """The keys in the file; the last good ones while it is missing or broken."""
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
            if seen != self._seen:
                self._seen = seen
                self._current = self._read()
                _log.info("keys", file=str(self._path), keys=[key.kid for key in self._current.table.values()])
        except OSError as error:
            self._seen = None  # look again, also at the same file
            self._unreadable.warn(reason=str(error))
        except GatepassError as error:
            self._unreadable.warn(reason=error.message)
        return self._current

    async def run(self) -> None:
        """Have nothing to do: the file is looked at when a token is."""
        await anyio.sleep_forever()

    async def refreshed(self) -> bool:
        """Return False: `current` is never behind the file."""
        return False

    def _read(self) -> KeySet:
        if not stat.S_ISREG(check_place(str(self._path)).st_mode):
            raise ConfigurationError("this is not a regular file", where=str(self._path))
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if os.fstat(descriptor).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise ConfigurationError("others than its owner can write to this file", where=str(self._path))
            text = file.read(_MAX_JWKS_BYTES)
        try:
            document = json.loads(text)
            keys: list[Mapping[str, Any]] = document["keys"]
            return key_set(self._issuer, keys)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigurationError(f"not a set of gatepass keys ({error})", where=str(self._path)) from None
