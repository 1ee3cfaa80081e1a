"""The composition root: builds the broker's objects in one place, runs them, and takes them down in mirror order."""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.lowlevel
import anyio.to_thread
import structlog

from gatepass.clock import Moment, now
from gatepass.daemon.pulse import Queue, keep_manager_informed, tell
from gatepass.daemon.safe_paths import check_directory, make_directory
from gatepass.daemon.systemd import Manager
from gatepass.frames import Message
from gatepass_broker.acceptor import Acceptor
from gatepass_broker.bystander import caller_of_process
from gatepass_broker.connection import Connection, House
from gatepass_broker.journal import Journal, JournalError
from gatepass_broker.jwks import write_jwks
from gatepass_broker.listener import Listener, adopt_listeners, open_listener
from gatepass_broker.peer import pidfds_come_with_connections
from gatepass_broker.places import Places
from gatepass_broker.pulse import answers
from gatepass_broker.service import Broker
from gatepass_broker.settings import ConnectionLimits, Settings
from gatepass_broker.vault import open_vault

BACKLOG: Final = 256
"""Connections that the kernel holds for us: beyond, a client that does not block gets EAGAIN from `connect`."""

ACCEPT_AT_ONCE: Final = 4
"""Connections that asyncio accepts before it does anything else: each holds a descriptor before it is counted."""

SPARE_DESCRIPTORS: Final = 48
"""Kept free for files and libraries: connections never take the last one, so accepting cannot fail for want of it."""

DESCRIPTORS_EACH: Final = 2
"""A connection and its process."""

DRAIN_SECONDS: Final = 2.0
TICK: Final = 0.01
RETRY_SECONDS: Final = 5.0
LONGEST_SLEEP: Final = 60.0
"""Seconds until the wall clock is looked at again: it may have been stepped."""

NO_MANAGER: Final = Manager()

_log: Final = structlog.stdlib.get_logger()


class Server:
    """A broker that listens. Made by `running`."""

    def __init__(self, settings: Settings, broker: Broker, house: House, queues: Sequence[Queue]) -> None:
        self.settings = settings
        self.broker = broker
        self.house = house
        self.queues = queues
        self.fault = ""
        """What is wrong with the configuration file, where it could not be reloaded."""

    def reload(self, settings: Settings) -> None:
        """Let `settings` come into force, all at once. Raise `JournalError`, and then nothing has changed."""
        limits = _within_descriptors(settings.limits)
        self.broker.configure(settings.rules, settings.lifetimes, settings.digest)
        self.house.limits = limits
        self.house.registry.total, self.house.registry.per_uid = limits.connections, limits.connections_per_uid
        for name in _needs_restart(self.settings, settings):
            _log.warning("this change takes a restart", key=name)
        self.settings, self.fault = settings, ""
        _log.info("configuration reloaded", rules=len(settings.rules.rules))

    @property
    def status(self) -> str:
        """How the broker is, in one line for the operator."""
        state = self.broker.state
        rules, connections = len(self.settings.rules.rules), len(self.house.registry)
        counts = f"rules: {rules}; tokens issued: {state.issued}, refused: {state.refused}; connections: {connections}"
        if state.locked:
            counts += "; locked: nothing is issued"
        if not self.broker.is_all_recorded:
            counts += "; what was locked or revoked last is not on the record, as the journal cannot be written"
        return f"{counts}; the configuration was not reloaded: {self.fault}" if self.fault else counts

    async def turn_keys(self) -> None:
        """Rotate the keys for ever."""
        while True:
            try:
                pause = self.broker.turn_keys()
            except JournalError as error:
                _log.error("what is due cannot be recorded", error=error.message)
                pause = RETRY_SECONDS
            await anyio.sleep(min(pause, LONGEST_SLEEP))

    async def drain(self) -> None:
        """Answer what has arrived, then close every connection."""
        with anyio.move_on_after(DRAIN_SECONDS, shield=True):
            await anyio.sleep(TICK)  # what the kernel has received is read in this time
            await _until(lambda: not any(connection.busy for connection in self.house.registry.everyone()))
            for connection in self.house.registry.everyone():
                connection.end()
            await _until(lambda: len(self.house.registry) == 0)
        for connection in self.house.registry.everyone():
            connection.abort()
        await anyio.lowlevel.checkpoint()  # the loop tells connections that they are gone


@asynccontextmanager
async def running(
    settings: Settings, version: str, clock: Callable[[], Moment] = now, manager: Manager = NO_MANAGER
) -> AsyncIterator[Server]:
    """Run a broker for the time of the block. It answers as soon as the block begins, and drains when it ends.

    Raise `ConfigurationError` and `JournalError`; then nothing of it is left behind.
    """
    async with AsyncExitStack() as stack:
        journal = Journal(make_directory(settings.state_dir / "journal"), settings.journal)
        stack.callback(journal.close)
        vault = open_vault(manager)
        places = Places.of_this_machine()
        broker = Broker(
            settings.rules,
            settings.lifetimes,
            journal,
            version=version,
            clock=clock,
            vault=vault,
            caller_of=partial(caller_of_process, places=places),
        )
        house = House(broker, _within_descriptors(settings.limits), places)
        if settings.jwks_file is not None:
            broker.on_keys(_jwks_writer(settings.jwks_file))
        listeners = _listen(stack, settings, manager)
        broker.start(settings.digest)
        stack.callback(_record_stop, broker, journal)
        server = Server(settings, broker, house, [listener.queue for listener in listeners])
        stack.push_async_callback(server.drain)
        for listener in listeners:
            stack.push_async_callback(_stop_accepting, await _accept(listener, house))
        yield server


async def run(
    settings: Settings,
    version: str,
    reload: Callable[[], Settings] | None,
    ready: Callable[[Settings], None],
    manager: Manager = NO_MANAGER,
) -> None:
    """Run a broker until SIGTERM or SIGINT. SIGHUP calls `reload`, if there is one, for new settings.

    `ready` is called when clients are answered. Raise as `running` does.
    """
    asyncio.get_running_loop().set_exception_handler(_log_loop_error)
    with anyio.open_signal_receiver(signal.SIGHUP, signal.SIGTERM, signal.SIGINT) as signals:
        async with running(settings, version, manager=manager) as server, anyio.create_task_group() as tasks:
            tasks.start_soon(server.turn_keys)
            await tell(manager.notifier, manager.notifier.ready, server.status)
            still_answers = partial(answers, server.house)
            tasks.start_soon(
                keep_manager_informed, manager.notifier, lambda: server.status, still_answers, server.queues
            )
            ready(settings)
            async for received in signals:
                if received != signal.SIGHUP:
                    _log.info("stopping", signal=received.name)
                    break
                manager.notifier.reloading()
                await _reload(server, reload)
                await tell(manager.notifier, manager.notifier.ready, server.status)
            manager.notifier.stopping()
            tasks.cancel_scope.cancel()


async def _reload(server: Server, reload: Callable[[], Settings] | None) -> None:
    if reload is None:
        _log.warning("there is no configuration file to read again")
        return
    try:
        # In a thread: looking up users can take as long as their directory service does.
        server.reload(await anyio.to_thread.run_sync(reload))
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a new configuration, the old one is good
        server.fault = str(error)
        _log.error("the configuration was not reloaded; the last good one stays", error=server.fault)


def _jwks_writer(path: Path) -> Callable[[Message], None]:
    real = check_directory(path.parent) / path.name

    def write(keys: Message) -> None:
        try:
            write_jwks(real, keys["keys"])
        except OSError as error:
            # Tokens of the new key do not verify for readers of the file: that fails closed, so the broker goes on.
            _log.error("the JWKS file cannot be written", path=str(real), error=error.strerror)

    return write


async def _until(done: Callable[[], bool]) -> None:
    """Poll: connections do not report to anyone, and this is needed once in a broker's life."""
    while not done():  # noqa: ASYNC110
        await anyio.sleep(TICK)


def _listen(stack: AsyncExitStack, settings: Settings, manager: Manager) -> list[Listener]:
    """Return a listener for each socket: the service manager's, if it has one at that path, else one of our own."""
    adopted = adopt_listeners(settings.sockets, manager.sockets())
    listeners = []
    for entry in settings.sockets:
        listeners.append(adopted.get(entry.path) or open_listener(entry))
        stack.callback(listeners[-1].close)
    return listeners


async def _accept(listener: Listener, house: House) -> asyncio.Server | Acceptor:
    loop = asyncio.get_running_loop()

    def taken(absent_at: int | None = None) -> Connection:
        listener.queue.taken += 1
        return Connection(house, listener.settings.allow, absent_at)

    if not pidfds_come_with_connections():
        listener.socket.listen(BACKLOG)
        return Acceptor(listener.socket, taken)
    # From Python 3.13 on, closing the server would remove the path, which may be the service manager's.
    options: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
    server = await loop.create_unix_server(taken, sock=listener.socket, backlog=ACCEPT_AT_ONCE, **options)
    listener.socket.listen(BACKLOG)  # asyncio has one number for both
    return server


async def _stop_accepting(server: asyncio.Server | Acceptor) -> None:
    server.close()


def _record_stop(broker: Broker, journal: Journal) -> None:
    try:
        broker.stop()
    except JournalError as error:
        _log.error("the stop is not on the record", error=error.message)
    # The end of a journal can be cut off unseen from within; whoever keeps this line elsewhere can tell.
    _log.info("stopped", last_record=journal.head.seq, digest=journal.head.digest)


def _within_descriptors(limits: ConnectionLimits) -> ConnectionLimits:
    """Return `limits` with no more connections than there are descriptors for, after asking for as many as it takes."""
    wanted = (limits.connections + BACKLOG) * DESCRIPTORS_EACH + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    burst = min(BACKLOG, soft // 8)  # uvloop accepts all that are waiting before it tells of the first
    room = max(1, (soft - SPARE_DESCRIPTORS) // DESCRIPTORS_EACH - burst)
    if room < limits.connections:
        _log.warning("fewer connections than configured: raise the limit of open files", connections=room, files=soft)
        return limits._replace(connections=room)
    return limits


def _needs_restart(old: Settings, new: Settings) -> list[str]:
    differs = {
        "broker.id": old.rules.issuer != new.rules.issuer,
        "broker.state_dir": old.state_dir != new.state_dir,
        "broker.jwks_file": old.jwks_file != new.jwks_file,
        "journal": old.journal != new.journal,
        "socket": old.sockets != new.sockets,
    }
    return [name for name, changed in differs.items() if changed]


def _log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    del loop
    _log.error("the event loop reports a fault", fault=context.get("message"), exc_info=context.get("exception"))
