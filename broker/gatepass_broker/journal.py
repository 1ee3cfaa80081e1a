"""The journal on disk: segments of chained lines that are only ever appended to.

`DIRECTORY/00000001.jsonl` and so on. Written means that `write` returned, so a killed broker loses nothing; checkpoints
are synced as well, so a power cut loses at most what came after the last one. Every segment but the very first begins
with a checkpoint, so that old ones can be dropped and a restart reads one file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from gatepass.daemon.ed25519 import signature_check
from gatepass.errors import ConfigurationError, ErrorCode, TryLaterError
from gatepass_broker.chain import EMPTY, BrokenChainError, Head, Sign, advance, encode_line, read_lines
from gatepass_broker.events import AnyEvent, Checkpoint
from gatepass_broker.settings import JournalLimits
from gatepass_broker.state import State

CHECKPOINT_EVERY: Final = 8_192
"""Records between checkpoints within a segment: a second of full load, some 50 ms of replay."""

RETRY_AFTER: Final = 5
"""Seconds after which a client may ask again when the journal could not be written."""

_SEGMENT: Final = re.compile(r"(\d{8})\.jsonl")
_OPEN: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_APPEND: Final = os.O_RDWR | os.O_APPEND


class JournalError(TryLaterError):
    """The journal cannot be written now; nothing may be issued."""

    def __init__(self, error: OSError) -> None:
        super().__init__(
            ErrorCode.UNAVAILABLE,
            f"the broker's journal cannot be written: {error.strerror}; nothing is issued until it can",
            retry_after=RETRY_AFTER,
        )


class Replay(NamedTuple):
    """What a journal said when it was opened."""

    state: State
    head: Head
    cut: int
    """Bytes of a half-written record that were removed from the end."""


class Journal:
    """One broker's journal, open for appending and locked against a second broker.

    Only `State.checkpoint` and a way to sign are needed to write checkpoints; the caller decides when, by `is_due`.
    """

    def __init__(self, directory: Path, limits: JournalLimits) -> None:
        """Open the journal in `directory`, which exists and is ours alone, and replay it.

        Raise `ConfigurationError` where another broker uses it, or where a record was changed.
        """
        self._directory = directory
        self._limits = limits
        self._lock = _lock(directory)
        self._descriptor = -1
        try:
            self._number = _newest_with_content(directory)
            replay = _replay(directory, self._number)
            self._descriptor = _open_segment(_path(directory, self._number))
        except BaseException:
            self.close()
            raise
        self.state, self.cut, self._head = replay.state, replay.cut, replay.head
        self._size = os.fstat(self._descriptor).st_size
        self._since_checkpoint = 0
        self._torn = False

    @property
    def head(self) -> Head:
        """Number and digest of the last record."""
        return self._head

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint should be written now."""
        return self._since_checkpoint >= CHECKPOINT_EVERY or self._size >= self._limits.segment_bytes

    def append(self, events: Sequence[AnyEvent]) -> None:
        """Write `events` with one `write`: all or none of them. Raise `JournalError`."""
        lines, head = _chain(self._head, events)
        try:
            self._write(lines)
        except OSError as error:
            raise JournalError(error) from error
        self._head = head
        self._since_checkpoint += len(events)

    def checkpoint(self, checkpoint: Checkpoint, sign: Sign) -> None:
        """Write and sync a signed checkpoint, in a new segment if this one is full. Raise `JournalError`."""
        line = encode_line(self._head, checkpoint, sign)
        try:
            if self._size >= self._limits.segment_bytes:
                self._begin_segment(line)
            else:
                self._write(line + b"\n", sync=True)
        except OSError as error:
            raise JournalError(error) from error
        self._head = advance(self._head, line)
        self._since_checkpoint = 0

    def close(self) -> None:
        """Let go of the files and the lock."""
        for descriptor in (self._descriptor, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._lock = -1

    def _write(self, data: bytes, *, sync: bool = False) -> None:
        if self._torn:
            self._mend()
        try:
            _write_whole(self._descriptor, data)
            if sync:
                os.fdatasync(self._descriptor)
        except OSError:
            self._torn = True
            self._mend()
            raise
        self._size += len(data)

    def _mend(self) -> None:
        """Cut off a record that was written in part. Where even that fails, the next write tries it again first."""
        os.ftruncate(self._descriptor, self._size)
        self._torn = False

    def _begin_segment(self, checkpoint: bytes) -> None:
        path = _path(self._directory, self._number + 1)
        descriptor = os.open(path, _OPEN | _APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _write_whole(descriptor, checkpoint + b"\n")
            os.fsync(descriptor)
            _sync_directory(self._directory)
        except BaseException:
            os.close(descriptor)
            path.unlink()
            raise
        os.close(self._descriptor)
        self._descriptor, self._number, self._size = descriptor, self._number + 1, len(checkpoint) + 1
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        """What cannot be removed now is tried again with the next segment; the journal is as good with it."""
        for number in segments(self._directory)[: -self._limits.keep_segments]:
            with contextlib.suppress(OSError):
                _path(self._directory, number).unlink()


class Report(NamedTuple):
    """What `check_journal` found."""

    records: int
    segments: int
    head: Head
    problem: str
    """The first break, with file and line, or empty."""


def check_journal(directory: Path) -> Report:
    """Walk every record of the journal in `directory`, changing nothing. Raise `OSError` where it cannot be read."""
    numbers = segments(directory)
    head = EMPTY if numbers[:1] == [1] else None
    known: dict[str, bytes] = {}
    records = 0
    for expected, number in enumerate(numbers, start=min(numbers, default=0)):
        path = _path(directory, number)
        if number != expected:
            return Report(records, len(numbers), head or EMPTY, f"{path}: the segment before it is missing")
        whole, rest = _split(_read(path))
        try:
            for _event, after in read_lines(whole, head, known, signature_check):
                head, records = after, records + 1
        except BrokenChainError as error:
            return Report(records, len(numbers), head or EMPTY, f"{path}, line {error.number}: {error.why}")
        if rest and number != numbers[-1]:
            return Report(records, len(numbers), head or EMPTY, f"{path}, line {len(whole) + 1}: it is not complete")
    return Report(records, len(numbers), head or EMPTY, "")


def segments(directory: Path) -> list[int]:
    """Return the numbers of the journal's segments, in order."""
    found = (_SEGMENT.fullmatch(path.name) for path in directory.iterdir())
    return sorted(int(match[1]) for match in found if match)


def _chain(head: Head, events: Sequence[AnyEvent]) -> tuple[bytes, Head]:
    lines = []
    for event in events:
        line = encode_line(head, event)
        head = advance(head, line)
        lines.append(line + b"\n")
    return b"".join(lines), head


def _replay(directory: Path, number: int) -> Replay:
    """Read the newest segment: its first checkpoint stands for all segments before it."""
    path = _path(directory, number)
    whole, rest = _split(_read(path))
    state, head = State(), EMPTY
    try:
        for event, after in read_lines(whole, EMPTY if number == 1 else None, {}, signature_check):
            state.apply(event)
            head = after
    except BrokenChainError as error:
        raise ConfigurationError(
            f"the journal does not hold together here: {error}. What it says cannot be relied on. Keep it as "
            f"evidence: move {directory} elsewhere, and the broker starts a new journal",
            where=f"{path}, line {error.number}",
        ) from None
    if rest:
        os.truncate(path, sum(len(line) + 1 for line in whole))
    return Replay(state, head, len(rest))


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the complete lines, and what follows the last newline."""
    *whole, rest = data.split(b"\n")
    return whole, rest


def _newest_with_content(directory: Path) -> int:
    """Return the number of the segment to go on with.

    A crash between making a segment and writing its checkpoint leaves one without a complete line: it is removed.
    """
    numbers = segments(directory)
    while len(numbers) > 1 and b"\n" not in _read(_path(directory, numbers[-1])):
        _path(directory, numbers.pop()).unlink()
    return numbers[-1] if numbers else 1


def _open_segment(path: Path) -> int:
    return os.open(path, _OPEN | _APPEND | os.O_CREAT, 0o600)


def _read(path: Path) -> bytes:
    try:
        descriptor = os.open(path, _OPEN | os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigurationError("this is not a regular file; move it away", where=str(path))
        return file.read()


def _write_whole(descriptor: int, data: bytes) -> None:
    """Write `data` with one call; a file takes less only where there is no room for more."""
    if os.write(descriptor, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(directory: Path) -> int:
    descriptor = os.open(directory / "lock", _OPEN | os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigurationError(
            "another broker writes this journal; stop it, or give this one a state_dir of its own",
            where=str(directory),
        ) from None
    return descriptor


def _path(directory: Path, number: int) -> Path:
    return directory / f"{number:08}.jsonl"
