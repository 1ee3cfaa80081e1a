"""What local callers have open here, so that a revocation, the lock or the end of a process ends it at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup

from gatepass.claims import Claims, Process, join_scope
from gatepass.clock import Moment, now
from gatepass.daemon.logs import SeldomWarning
from gatepass.daemon.processes import open_process
from gatepass.errors import ErrorCode, GatepassError, TokenError, TryLaterError
from gatepass.revocations import NOTHING_CUT, Standing, locked_error, revoked_error
from gatepass.sessions import MAX_TEXT, LeftBehind, Session
from gatepass.tokens import b64encode
from gatepass_gateway.reports import Reports
from gatepass_gateway.trusted_proxy import Client, Identity

_log: structlog.stdlib.BoundLogger = structlog.get_logger("sessions")

_ID_BYTES: Final = 16
_CLIENT_CHARACTERS: Final = 64
_END_SECONDS: Final = 5
"""How long sessions may take to end. Each has bounds of its own that are shorter: this shows a fault of ours."""


class Held:
    """Something that is open, and the handle to end it with."""

    def __init__(self, session: Session | None = None, claims: Claims | None = None) -> None:
        self.session = session
        """None for what is not ended before its time: connections without a login, of nodes, of remote users."""
        self.claims = claims
        """Of the token that it logged in with."""
        self.cut: GatepassError | None = None
        """Why it has to end."""
        self.ended = anyio.Event()
        """Set by `finish`."""
        self.beside = anyio.CancelScope()
        """Of what watches over it."""
        self._scope: anyio.CancelScope | None = None
        self._on_end: Callable[[], None] = lambda: None

    def finish(self) -> None:
        """Take note that nothing passes any more, though last words may. A second time changes nothing."""
        if not self.ended.is_set():
            self.ended.set()
            self.beside.cancel()
            self._on_end()

    def when_finished(self, forget: Callable[[], None]) -> None:
        """Have `forget` called then."""
        self._on_end = forget

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Run the block until the session has to end. Look at `cut` afterwards."""
        with anyio.CancelScope() as scope:
            self._scope = scope
            if self.cut:
                scope.cancel()
            try:
                yield
            finally:
                self._scope = None

    def end(self, error: GatepassError) -> None:
        """Have it ended, with `error` for its client."""
        if self.cut is None:
            self.cut = error
        if self._scope is not None:
            self._scope.cancel()

    def is_cut_off_by(self, standing: Standing) -> GatepassError | None:
        """Return why `standing` ends it, or None."""
        if self.session is None:
            return None
        if standing.locked:
            return locked_error()
        for revocation in standing.revocations:
            if self.claims is not None:
                chosen = revocation.covers(self.claims)
            else:
                by_account = revocation.means(None, self.session.uid, None, None)
                chosen = by_account and self.session.since <= revocation.issued_until
            if chosen:
                return revoked_error()
        return None


class Sessions:
    """All of them. `run` has to run meanwhile, to watch over those that are bound to a process."""

    def __init__(self, clock: Callable[[], Moment] = now) -> None:
        self.open = 0
        """How many WebSockets are logged in, remote users' and nodes' among them."""
        self.reports = Reports()
        self._clock = clock
        self._standing = NOTHING_CUT
        self._held: dict[str, Held] = {}
        self._tasks: TaskGroup | None = None
        self._changed = anyio.Event()
        self._forgotten = SeldomWarning("left_behind_forgotten")

    async def run(self) -> None:
        """Watch over processes, without end."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                await anyio.sleep_forever()
            finally:
                self._tasks = None

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Count one more WebSocket for as long as the block runs."""
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    @contextmanager
    def hold(self, session: Session, claims: Claims | None) -> Iterator[Held]:
        """Hold `session`, of a token with `claims` or of a credential of the gateway's own, while the block runs.

        Call it in the same turn of the loop as the last check of that token: from here on whatever cuts it off
        ends it. Raise `GatepassError` if something already does.
        """
        held = Held(session, claims)
        if error := held.is_cut_off_by(self._standing):
            raise error
        if claims is not None and claims.confirmation.process is not None:
            self._watch(held, claims.confirmation.process)
        self._held[session.id] = held
        held.when_finished(partial(self._forget, session.id))
        self.reports.opened(session, anyio.current_time())
        self.wake()
        try:
            yield held
        finally:
            held.finish()

    async def enforce(self, standing: Standing) -> None:
        """Let `standing` be in force, and return when all that it cuts off has ended. Raise `TimeoutError`."""
        self._standing = standing
        cut = []
        for held in self._held.values():
            if error := held.is_cut_off_by(standing):
                held.end(error)
                cut.append(held)
        if not cut:
            return
        with anyio.fail_after(_END_SECONDS):
            for held in cut:
                await held.ended.wait()
        _log.info("sessions_ended", reason="locked" if standing.locked else "revoked", sessions=len(cut))

    def tell_anew(self) -> None:
        """Begin with a broker that has been told of no session."""
        self.reports.start_anew((held.session for held in self._held.values() if held.session), anyio.current_time())

    def leave_behind(self, entry: LeftBehind) -> None:
        """Note what a session left behind."""
        _log.info("left_behind", kind=entry.kind, name=entry.name, session=entry.session, jti=entry.jti)
        if not self.reports.left_behind(entry):
            self._forgotten.warn()
        self.wake()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when there is something to tell, or `condition` holds after a `wake`.

        Whatever else happens in the same turn of the loop is told with it.
        """
        while not condition():
            wait = self.reports.due_at() - anyio.current_time()
            if wait <= 0:
                return
            changed = self._changed
            with anyio.move_on_after(wait):
                await changed.wait()

    def wake(self) -> None:
        """Have `until` look again."""
        self._changed.set()
        self._changed = anyio.Event()

    def new_session(
        self, kind: str, client: Client, identity: Identity | None, *, calls_itself: str, scopes: frozenset[str]
    ) -> Session:
        """Return the description of a session that begins now. Without an identity it is a device's."""
        claims = None if identity is None else identity.claims
        reconnects = identity is not None and identity.reconnects
        return Session(
            id=b64encode(os.urandom(_ID_BYTES)),
            kind=kind,
            login="device" if claims is None else "reconnect" if reconnects else "token",
            identity=None if claims is None else short(claims.subject),
            uid=client.uid,
            unit=None if claims is None or claims.unit is None else short(claims.unit),
            jti=None if claims is None else short(claims.token_id),
            scope=short(join_scope(tuple(sorted(scopes)))),
            since=int(self._clock().time),
            client=short(calls_itself)[:_CLIENT_CHARACTERS],
        )

    def _forget(self, session_id: str) -> None:
        del self._held[session_id]
        self.reports.closed(session_id)
        self.wake()

    def _watch(self, held: Held, process: Process) -> None:
        if self._tasks is None:
            raise TryLaterError(ErrorCode.UNAVAILABLE, "the gateway's proxy restarts, connect again", retry_after=1)
        pidfd = open_process(process)
        if pidfd is None:
            raise _process_ended()
        self._tasks.start_soon(_end_with_process, held, pidfd)


async def _end_with_process(held: Held, pidfd: int) -> None:
    try:
        with held.beside:
            await anyio.wait_readable(pidfd)
            held.end(_process_ended())
    finally:
        os.close(pidfd)


def short(text: str) -> str:
    """Return `text` as it may stand in a report: printable, and not long."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text[:MAX_TEXT])


def _process_ended() -> TokenError:
    return TokenError(
        ErrorCode.TOKEN_PROCESS_ENDED, "the token is bound to a process that has ended; ask for a new one"
    )
