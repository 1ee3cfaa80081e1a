"""For tests of the client: a peer on a real Unix socket that does exactly what a script says, and tokens made here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gatepass.aio import AsyncClient
from gatepass.claims import BootDeadline, Claims, Confirmation
from gatepass.client import Client
from gatepass.clock import Moment
from gatepass.frames import FrameDecoder, Message, encode_frame
from gatepass.messages import IssuedToken
from gatepass.tokens import Expected, VerificationKey, encode_token, header, thumbprint

MOMENT = Moment(time=1_800_000_000.0, boottime=5_000.0, boot_id="0" * 32)
ISSUE_RESULT: Message = {
    "token": "scripted.to.ken",
    "expires_in": 300,
    "subject": "derek@example.com",
    "audience": "openclaw",
    "scope": "operator.read",
}

Script = Callable[["Conversation"], None]

both_clients = pytest.mark.parametrize(
    ("kind", "anyio_backend"),
    [
        pytest.param("blocking", ("asyncio", {"use_uvloop": False}), id="blocking"),
        pytest.param("async", ("asyncio", {"use_uvloop": False}), id="async"),
        pytest.param("async", ("asyncio", {"use_uvloop": True}), id="async-uvloop"),
    ],
)
"""Run a test for the blocking client, which needs no loop, and for the async one on both loops; see `call`."""


class Conversation:
    """One accepted connection, in the hands of a script."""

    def __init__(self, connection: socket.socket, ended: threading.Event) -> None:
        self.connection = connection
        self.ended = ended
        self._decoder = FrameDecoder()

    def request(self) -> Message:
        """Wait for a request."""
        while (message := self._decoder.next_message()) is None:
            data = self.connection.recv(65_536)
            if not data:
                raise ConnectionResetError
            self._decoder.feed(data)
        return message

    def answer(self, result: Message | None = None) -> None:
        """Read a request and answer it."""
        message = self.request()
        self.connection.sendall(encode_frame({"id": message["id"], "ok": True, **(result or ISSUE_RESULT)}))

    def refuse(self, code: str, message: str = "no", **more: Any) -> None:
        """Read a request and answer it with an error."""
        request = self.request()
        error = {"code": code, "message": message, **more}
        self.connection.sendall(encode_frame({"id": request["id"], "ok": False, "error": error}))

    def send(self, data: bytes) -> None:
        """Read a request and answer it with any bytes."""
        self.request()
        self.connection.sendall(data)

    def stay_silent(self) -> None:
        """Read a request and keep the connection until the test is over."""
        self.request()
        self.ended.wait()


class Peer:
    """What listens: each connection gets the next script; after the last one it is repeated."""

    def __init__(self, path: Path, scripts: Sequence[Script]) -> None:
        self.path = str(path)
        self.connections = 0
        self._scripts = list(scripts)
        self._ended = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            script = self._scripts[min(self.connections, len(self._scripts) - 1)]
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(script, connection), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, script: Script, connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):
            script(Conversation(connection, self._ended))

    def close(self) -> None:
        """Stop listening and end every script."""
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)


@contextmanager
def scripted(path: Path, *scripts: Script) -> Iterator[Peer]:
    """Listen on `path` for the time of the block."""
    peer = Peer(path, scripts)
    try:
        yield peer
    finally:
        peer.close()


def always(*steps: Script) -> Script:
    """Make a script that goes through `steps` again and again until the client leaves."""

    def script(talk: Conversation) -> None:
        while True:
            for step in steps:
                step(talk)

    return script


def recording(requests: list[Message], result: Message) -> Script:
    """Make a script that answers everything with `result`, and adds each request to `requests`."""

    def script(talk: Conversation) -> None:
        while True:
            request = talk.request()
            requests.append({name: value for name, value in request.items() if name not in ("v", "id")})
            talk.connection.sendall(encode_frame({"id": request["id"], "ok": True, **result}))

    return script


async def call(
    kind: str, socket_path: object, method: str, *arguments: Any, patience: float = 5.0, **named: Any
) -> Any:
    """Call a method of a new client of `kind`, blocking or async, so that one test covers both."""
    if kind == "blocking":
        with Client(str(socket_path), patience) as client:
            return await anyio.to_thread.run_sync(lambda: getattr(client, method)(*arguments, **named))
    async with AsyncClient(str(socket_path), patience) as twin:
        return await getattr(twin, method)(*arguments, **named)


def run_cli(
    *arguments: str,
    socket: object = None,
    stdin: str | bytes = b"",
    env: Mapping[str, str] | None = None,
    name: str | None = None,
    **popen: Any,
) -> subprocess.CompletedProcess[str]:
    """Run `gatepass ARGUMENTS` as a process. `name` puts a process of that name above it, as OpenClaw would be."""
    command = cli_command(*arguments)
    if name is not None:
        inner = 'exec -a "$0" bash -c \'"$@"; exit $?\' bash "$@"'
        command = ["bash", "-c", inner, name, *command]
    done = subprocess.run(
        command,
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        env=cli_environment(socket, env),
        capture_output=True,
        timeout=20,
        check=False,
        **popen,
    )
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def cli_command(*arguments: str) -> list[str]:
    """Return the command line of `gatepass ARGUMENTS`."""
    return [sys.executable, "-c", "import sys; from gatepass.cli import main; sys.exit(main())", *arguments]


def cli_environment(socket: object = None, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which only `socket` says where the broker is."""
    base = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TZ": "UTC", **(env or {})}
    return base if socket is None else {**base, "GATEPASS_SOCKET": str(socket)}


class CountingIssuer:
    """Issues numbered tokens, and counts. `error` is raised instead while it is set."""

    def __init__(self, expires_in: int = 100) -> None:
        self.calls = 0
        self.expires_in = expires_in
        self.error: Exception | None = None

    def issue(
        self,
        audience: str | None = None,
        scope: str | None = None,
        ttl: int | None = None,
        binding: str | None = None,
    ) -> IssuedToken:
        """Return the next token."""
        self.calls += 1
        if self.error is not None:
            raise self.error
        return IssuedToken(f"token-{self.calls}", self.expires_in, "derek@example.com", "openclaw", "")


class SigningKey:
    """An Ed25519 key pair and tokens signed with it."""

    def __init__(self) -> None:
        self.private = Ed25519PrivateKey.generate()
        self.public = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.kid = thumbprint(self.public)

    def sign(self, claims: Claims) -> str:
        """Return a token."""
        return encode_token(claims, header(self.kid), self.private.sign)

    def verification_key(self) -> VerificationKey:
        """Return the public half as a verifier holds it."""
        return VerificationKey(self.kid, self._verify)

    def _verify(self, signature: bytes, data: bytes) -> bool:
        try:
            self.private.public_key().verify(signature, data)
        except InvalidSignature:
            return False
        return True


def claims_at(moment: Moment = MOMENT, lifetime: int = 300, **changes: Any) -> Claims:
    """Return claims issued at `moment`."""
    claims = Claims(
        issuer="gatepass:test",
        subject="derek@example.com",
        audience="openclaw",
        issued_at=int(moment.time),
        expires_at=int(moment.time) + lifetime,
        token_id="AAAAAAAAAAAAAAAAAAAAAA",
        scope=("operator.read",),
        actors=("uid:1000",),
        confirmation=Confirmation(uid=1000),
        boot=BootDeadline(id=moment.boot_id, deadline=int(moment.boottime) + lifetime),
    )
    return claims._replace(**changes)


def expected_at(moment: Moment = MOMENT, **changes: Any) -> Expected:
    """Return what a verifier expects of a token at `moment`."""
    return Expected(issuer="gatepass:test", audience="openclaw", moment=moment)._replace(**changes)
