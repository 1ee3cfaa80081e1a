"""One WebSocket of a client, from its upgrade to its end.

The upgrade goes upstream without identity, so that the gateway's own challenge, answers and errors reach the client
as if no proxy were there. Only when the first frame carries a token that verifies is a second connection opened,
with the identity header, and the frame sent there without its credentials. Until the gateway has answered that
frame nothing else of the client passes: no second `connect` can slip by unread.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, nullcontext
from functools import partial
from typing import Final, NamedTuple, NoReturn

import anyio
import h11
import structlog

from gatepass.daemon.logs import SeldomPerKey
from gatepass.errors import ErrorCode, GatepassError, TryLaterError
from gatepass.sessions import LeftBehind, Session
from gatepass_gateway.concurrency import run_beside
from gatepass_gateway.connect_frame import (
    OPERATOR_ROLE,
    ConnectFrame,
    answer_to,
    error_frame,
    is_challenge,
    parse_connect,
    refuse_misplaced_secrets,
    with_identity,
)
from gatepass_gateway.gate import Gate
from gatepass_gateway.headers import Headers
from gatepass_gateway.http_peer import HttpPeer
from gatepass_gateway.left_behind import Trace, paired_device
from gatepass_gateway.refused import RefusedError
from gatepass_gateway.sessions import Held, short
from gatepass_gateway.shares import Share
from gatepass_gateway.trusted_proxy import Client, Identity, Request
from gatepass_gateway.upstream import Way
from gatepass_gateway.websocket_link import ClosedByPeerError, Message, WebSocketLink
from gatepass_gateway.websocket_relay import Watcher, relay
from gatepass_gateway.websocket_upgrade import open_websocket, pass_upgrade, websocket_link
from gatepass_gateway.ws_frames import CloseCode, WebSocketError

_log: structlog.stdlib.BoundLogger = structlog.get_logger("websocket")

_REFUSED: Final = SeldomPerKey("login_refused")
_UNREAD: Final = SeldomPerKey("left_behind_unknown")
"""A message may have left something behind, but was too long or too deep to be read."""

_GREETING_SECONDS: Final = 5
"""How long a client may take to accept one frame of the gateway's greeting."""


class WebSocketRequest(NamedTuple):
    """An upgrade request and what is known of who sent it."""

    upgrade: h11.Request
    headers: Headers
    client: Client
    identity: Identity | None
    """Whose it is by the reverse proxy's header."""
    bearer: str | None
    """The token of the upgrade, which was good then; it counts once the first frame has said what it asks for."""


async def serve_websocket(client: HttpPeer, request: WebSocketRequest, gate: Gate) -> None:
    """Serve the WebSocket that `request` asks for until it ends. Raise `GatepassError` if it cannot be opened."""
    by_itself = request.identity is None and gate.may_log_in_by_itself(
        request.client, request.upgrade.target, request.headers
    )
    if by_itself:
        await gate.check_broker()
    async with AsyncExitStack() as opened:
        share = None if request.identity else opened.enter_context(gate.shares.hold(request.client))
        link = None
        # What the gateway answers instead of a WebSocket may have no end.
        with (
            gate.hold_exchange(request.client, request.headers, request.identity, by_itself=by_itself) as held,
            held.interruptible(),
        ):
            stream = await gate.upstream.connect(Way.IDENTITY if request.identity else Way.ANONYMOUS)
            server = HttpPeer(await opened.enter_async_context(stream), h11.CLIENT)
            fields = gate.headers_upstream(request.headers, request.identity)
            if await pass_upgrade(client, server, request.upgrade, fields, seconds=gate.deadlines.login):
                link = websocket_link(server, peer_is_client=False)
        if held.cut:
            raise held.cut
        if link is not None:
            session = _Session(websocket_link(client, peer_is_client=True), request, gate, share, by_itself=by_itself)
            await session.run(link)


class _Session:
    """An upgraded WebSocket: first the login, then the relay."""

    def __init__(
        self, client: WebSocketLink, request: WebSocketRequest, gate: Gate, share: Share | None, *, by_itself: bool
    ) -> None:
        self._client = client
        self._request = request
        self._gate = gate
        self._share = share
        self._by_itself = by_itself
        """Whether the upgrade may carry a credential of the gateway's own."""
        self._unanswered: str | None = None
        """The id of the login that the client waits for."""

    async def run(self, anonymous: WebSocketLink) -> None:
        """Log in over `anonymous`, the connection that was upgraded, or over one with an identity; then relay."""
        code: int
        try:
            async with AsyncExitStack() as opened:
                await self._serve(anonymous, opened)
            return  # noqa: TRY300 - the relay has told both ends
        except ClosedByPeerError as closed:
            code, reason = closed.code, closed.reason
        except WebSocketError as error:
            code, reason = error.close_code, error.reason
        except GatepassError as error:
            client = self._request.client
            _REFUSED.warn((client.account, error.code), uid=client.uid, reason=error.code, message=error.message)
            code, reason = CloseCode.POLICY_VIOLATION, f"gatepass: {error.message}"
            await self._answer_login(error)
        await anonymous.close(CloseCode.NORMAL, reason)
        await self._client.close(code, reason)

    async def _serve(self, anonymous: WebSocketLink, opened: AsyncExitStack) -> None:
        """Log in and relay. Raise what ends the session before the gateway has said yes."""
        first = await self._first_message(anonymous)
        frame = parse_connect(first.payload)
        self._unanswered = frame.id
        identity = await self._identify(frame)
        # No turn of the loop lies between: whatever is revoked from now on ends this session.
        held = opened.enter_context(self._hold(frame, identity))
        server = anonymous
        with held.interruptible():
            server = await self._log_in(frame, first, identity, anonymous, opened)
        if held.cut:
            await anyio.aclose_forcefully(anonymous.stream)
            raise held.cut
        self._note_login(frame, identity)
        if held.session is not None and frame.brings_setup_code and frame.device is not None:
            self._leave_behind(held.session, paired_device(frame.device))
        with self._gate.sessions.one_more():
            await relay(self._client, server, self._gate.stopping, held, self._watcher(held))

    async def _log_in(
        self,
        frame: ConnectFrame,
        first: Message,
        identity: Identity | None,
        anonymous: WebSocketLink,
        opened: AsyncExitStack,
    ) -> WebSocketLink:
        """Return the connection on which the gateway said yes. Raise what ends the session otherwise."""
        if identity is None:
            server = anonymous
            await server.send_frames(first.frames)
        else:
            server = await opened.enter_async_context(self._open_with(identity))
            await anonymous.close(CloseCode.NORMAL, "gatepass: continued with identity")
            await self._send_as(identity, server, frame)
        await self._pass_answer(server, frame.id)
        self._unanswered = None
        return server

    async def _answer_login(self, error: GatepassError) -> None:
        """Tell a client that waits for its login why there will be none."""
        if self._unanswered is not None:
            with anyio.move_on_after(_GREETING_SECONDS):
                await self._client.send_text(error_frame(self._unanswered, error))

    def _hold(self, frame: ConnectFrame, identity: Identity | None) -> AbstractContextManager[Held]:
        """Hold a local operator's session, or one that makes an operator.

        Those of other nodes, of remote users and without a login are nobody's here.
        """
        request, sessions = self._request, self._gate.sessions
        if identity is None and not self._logs_in_by_itself(frame):
            return nullcontext(Held())
        scopes = frame.scopes if identity is None else identity.scopes or frozenset()
        session = sessions.new_session("websocket", request.client, identity, calls_itself=frame.client, scopes=scopes)
        return sessions.hold(session, identity and identity.claims)

    def _logs_in_by_itself(self, frame: ConnectFrame) -> bool:
        """Whether it is a local operator, or makes one, with a credential of the gateway's own, be it the upgrade's."""
        if self._request.client.is_reverse_proxy:
            return False
        is_operator = frame.role == OPERATOR_ROLE
        return frame.brings_setup_code or (is_operator and (frame.brings_credential or self._by_itself))

    def _watcher(self, held: Held) -> Watcher | None:
        session = held.session
        if session is None:
            return None
        return Watcher(
            partial(self._leave_behind, session), lambda: _UNREAD.warn(session.uid, uid=session.uid, jti=session.jti)
        )

    def _leave_behind(self, session: Session, trace: Trace) -> None:
        entry = LeftBehind(
            time=int(self._gate.authenticator.clock().time),
            kind=trace.kind,
            name=short(trace.name),
            removal=trace.removal,
            session=session.id,
            identity=session.identity,
            uid=session.uid,
            unit=session.unit,
            jti=session.jti,
        )
        self._gate.sessions.leave_behind(entry)

    async def _first_message(self, server: WebSocketLink) -> Message:
        """Return the client's first message, with the gateway's greeting passed on meanwhile."""
        try:
            with anyio.fail_after(self._gate.deadlines.first_frame):
                return await run_beside(
                    partial(self._client.next_message, server), partial(_pass_frames, server, self._client)
                )
        except TimeoutError:
            raise RefusedError(ErrorCode.TIMEOUT, "no connect request came in time") from None

    async def _identify(self, frame: ConnectFrame) -> Identity | None:
        """Return the identity that a token brings, or None if the frame may go on as it is."""
        identity = None
        if self._request.identity is None:
            if frame.role == OPERATOR_ROLE:
                identity = await self._identity_by_token(frame)
            if identity is None and self._logs_in_by_itself(frame):
                await self._check_own_credential(frame)
        refuse_misplaced_secrets(frame, besides_auth=identity is not None)
        return identity

    async def _identity_by_token(self, frame: ConnectFrame) -> Identity | None:
        """Judge the token of the upgrade anew, or that of the frame: meanwhile it may have been revoked."""
        request = self._request
        login = Request(request.headers, request.client, request.bearer or frame.secret, frame.scopes)
        return await self._gate.authenticator.identify(login, may_reconnect=True)

    async def _check_own_credential(self, frame: ConnectFrame) -> None:
        """Refuse a local operator's login by a credential of the gateway's own, where no rule allows it, or the lock
        may be on unheard of. That it is on, `Sessions.hold` says.
        """
        is_operator = frame.role == OPERATOR_ROLE and frame.brings_device_credential
        if is_operator and self._request.client.uid not in self._gate.device_login_uids:
            raise RefusedError(
                ErrorCode.DEVICE_LOGIN,
                "a local operator logs in with a gatepass token here, not with a device token; to allow this user "
                "both, name it in [device_logins] of the gateway proxy's configuration",
            )
        await self._gate.check_broker()

    def _open_with(self, identity: Identity) -> AbstractAsyncContextManager[WebSocketLink]:
        """Open a connection that carries the identity, at the same path; the query may hold anything."""
        fields = self._gate.headers_upstream(self._request.headers, identity)
        path = self._request.upgrade.target.partition(b"?")[0]
        return open_websocket(self._gate.upstream, path, fields, seconds=self._gate.deadlines.login)

    async def _send_as(self, identity: Identity, server: WebSocketLink, frame: ConnectFrame) -> None:
        """Send the frame without its credentials, in answer to a challenge that the client need not see."""
        challenge = await self._next_before_login(server)
        if not is_challenge(challenge.payload):
            raise _no_answer("began with something else than a challenge")
        await server.send_text(with_identity(frame, identity.scopes or frozenset()))

    async def _pass_answer(self, server: WebSocketLink, request_id: str) -> None:
        """Pass the gateway's messages on up to its answer to the login; return if that is yes, else when it closes."""
        answer = None
        while answer is None:
            message = await self._next_before_login(server)
            await self._client.send_frames(message.frames)
            answer = answer_to(message.payload, request_id)
        if not answer:
            await self._pass_last_words(server)

    async def _pass_last_words(self, server: WebSocketLink) -> NoReturn:
        """Pass on what a gateway that said no still sends, until it closes."""
        with anyio.fail_after(self._gate.deadlines.login):
            while True:
                await self._client.send_frames((await server.next_message(self._client)).frames)

    async def _next_before_login(self, server: WebSocketLink) -> Message:
        try:
            with anyio.fail_after(self._gate.deadlines.login):
                return await server.next_message(self._client)
        except TimeoutError:
            raise _no_answer("did not answer the login in time") from None
        except anyio.EndOfStream:
            raise _no_answer("closed the connection at the login") from None

    def _note_login(self, frame: ConnectFrame, by_token: Identity | None) -> None:
        if self._share:
            self._share.release()
        request, authenticator = self._request, self._gate.authenticator
        secret, identity = request.bearer or frame.secret, by_token or request.identity
        if by_token and secret:
            authenticator.remember(secret, by_token, request.client)
        if identity:
            scopes = None if identity.scopes is None else sorted(identity.scopes)
            _log.info("login", uid=request.client.uid, user=identity.user, jti=identity.token_id, scopes=scopes)


async def _pass_frames(server: WebSocketLink, client: WebSocketLink) -> None:
    """Pass whole frames on until the server ends the stream; cancelling loses none that was taken up."""
    while True:
        frame = await server.next_frame()
        with anyio.fail_after(_GREETING_SECONDS, shield=True):
            await client.stream.send(frame.raw)


def _no_answer(what: str) -> TryLaterError:
    return TryLaterError(ErrorCode.UPSTREAM_UNAVAILABLE, f"the gateway behind {what}", retry_after=2)
