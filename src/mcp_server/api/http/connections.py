"""What uvicorn lacks: a deadline for a request's head, a cap behind authentication, and an end for what has none."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
import time
import weakref
from collections import Counter
from collections.abc import Collection
from typing import Any, Final

from mcp_server.api.http.problems import ASGIApp, Message, Receive, Scope, Send, header_values, send_problem
from mcp_server.api.http.request_identity import known_identity
from mcp_server.errors import BusyError

logger = logging.getLogger(__name__)

HEAD_SEC: Final = 10.0
"""Seconds a connection has to send the head of a request; one that only holds its place is closed then."""
KEEP_ALIVE_SEC: Final = 100
"""Seconds a connection may rest between requests. Longer than clients keep one unused (httpx 5 s, nginx 60 s, Go's
net/http 90 s), so that the client closes first: a request that crosses the server's own closing is lost.
"""


UNREAD_SEC: Final = 30.0
"""Seconds in which a client must take something of what waits for it. One that reads nothing, or is gone without a
word, is dropped then, and with it whatever its answer holds: a place, a page, a file.
"""
UNREAD_AT_STOP_SEC: Final = 1.0
"""The same for a server that stops."""

SPARE_DESCRIPTORS: Final = 256
"""Descriptors that connections leave to programs, store, logs and checks; half of all where those are under 512."""
KEPT_PLACES: Final = 4
"""Places beside ``server.max_connections`` for health, metrics and ``/admin/``: a full server can be seen to."""
SAY_SEC: Final = 60.0
"""Seconds between two lines of the log about connections that were turned away."""

_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPT_REST_SEC: Final = 0.5
"""Less than asyncio waits (1 s) before it listens again where the system gave no descriptor."""
_CLOSED_AT_ONCE: Final = 64
"""Connections closed before others have their turn."""


def most_connections() -> int:
    """Connections that a listener may hold open, by the process's limit on descriptors (RLIMIT_NOFILE)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1 << 20
    return max(1, soft - min(soft // 2, SPARE_DESCRIPTORS))


class BoundedSocket(socket.socket):
    """A listening socket that closes a newcomer at once while ``most`` connections that it accepted are open.

    Nothing less keeps descriptors free: asyncio accepts all that wait before it tells of the first, and where the
    system gives none any more, it goes on trying as often as its backlog is long, and logs a traceback each time.
    """

    def __init__(self, sock: socket.socket, most: int) -> None:
        """Take ``sock`` over, which is an empty shell then."""
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self._most = most
        self._held: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._rest_until = 0.0
        self._said = Said("connections.turned_away")

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection for which there is room; BlockingIOError where none waits."""
        if time.monotonic() < self._rest_until:
            raise BlockingIOError
        try:
            for _ in range(_CLOSED_AT_ONCE):
                taken, address = super().accept()
                if self._has_space():
                    self._held.add(taken)
                    return taken, address
                taken.close()
                self._said.again(f"{self._most} connections are open, as many as the limit on descriptors allows")
        except OSError as exc:
            if exc.errno in _NO_DESCRIPTORS:
                # asyncio stops listening for a second, but would call again at once, as often as its backlog is long.
                self._rest_until = time.monotonic() + _ACCEPT_REST_SEC
            raise
        raise BlockingIOError

    def _has_space(self) -> bool:
        if len(self._held) >= self._most:
            self._held = weakref.WeakSet(held for held in self._held if held.fileno() >= 0)
        return len(self._held) < self._most


class Said:
    """A line of the log that is written once in `SAY_SEC` at most, with how often it was due since."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._next = 0.0
        self._due = 0

    def again(self, message: str) -> None:
        """Count the event, and log it where it was not lately."""
        self._due += 1
        now = time.monotonic()
        if now >= self._next:
            logger.warning("%s count=%d: %s", self._event, self._due, message)
            self._next, self._due = now + SAY_SEC, 0


class AcceptErrors:
    """Exception handler of an event loop that keeps what asyncio says of missing descriptors to one line a minute."""

    def __init__(self) -> None:
        self._said = Said("connections.no_descriptor")

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log ``context``, a line where it is a listener without a descriptor, and as asyncio does otherwise."""
        exc = context.get("exception")
        if isinstance(exc, OSError) and exc.errno in _NO_DESCRIPTORS and "accept" in context.get("message", ""):
            self._said.again(f"a connection could not be accepted: {exc.strerror}")
        else:
            loop.default_exception_handler(context)


def deadline_protocol(head_sec: float = HEAD_SEC, unread_sec: float = UNREAD_SEC) -> Any:  # noqa: C901 - short methods of a class, counted as one function
    """Uvicorn's h11 protocol with a deadline for each request's head (RFC 9112 section 9.5 leaves it open)."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class DeadlineProtocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
            super().connection_made(transport)
            # The kernel's own measure: nothing acknowledged, or no room made for more, for so long (tcp(7), RFC 5482).
            # It holds as well for what is left when an answer is complete, which uvicorn waits for without a limit.
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(unread_sec * 1000))
            self._expect_head()

        def data_received(self, data: bytes) -> None:
            if self._deadline is None:
                self._expect_head()
            super().data_received(data)

        def on_response_complete(self) -> None:
            # From here uvicorn's own keep-alive limit holds, until the first byte of another request.
            self._expect_nothing()
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._expect_nothing()
            super().connection_lost(exc)

        def shutdown(self) -> None:
            super().shutdown()
            if unsent := self.transport.get_write_buffer_size():
                self.loop.call_later(UNREAD_AT_STOP_SEC, self._drop_unread, unsent)

        def _drop_unread(self, unsent: int) -> None:
            if self.transport.get_write_buffer_size() >= unsent:
                self.transport.abort()

        def _expect_head(self) -> None:
            self._deadline = self.loop.call_later(head_sec, self._give_up)

        def _expect_nothing(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _give_up(self) -> None:
            waiting = self.cycle is None or self.cycle.response_complete
            if waiting and not self.transport.is_closing():
                self.transport.close()

    return DeadlineProtocol


class RequestLimit:
    """ASGI guard that answers 429 while ``limit`` requests of known callers are under way.

    It stands behind authentication and behind the reading of bodies: neither connections of strangers nor bodies that
    do not come can use the places up. Streams without an end (GET of a path in ``streams``, and MCP subscriptions)
    have places of their own, half as many; health, metrics and ``/admin/`` have ``kept`` more than others. A caller
    that is no admin has three quarters of each kind at most, so that one alone does not shut the others out.
    """

    def __init__(self, app: ASGIApp, limit: int, *, streams: Collection[str] = (), kept: int = 0) -> None:
        self._app = app
        self._limit = limit
        self._streams = frozenset(streams)
        self._kept = kept
        self._under_way: Counter[str] = Counter()
        self._of_callers: Counter[tuple[str, str | None]] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on while there is a place."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        kind, most = "requests are under way", self._limit
        if self._is_endless(scope):
            kind, most = "streams are open", max(1, self._limit // 2)
        elif _is_operators(scope):
            most += self._kept
        if self._under_way[kind] >= most:
            error = BusyError(
                f"{self._under_way[kind]} {kind}, as many as server.max_connections allows", retry_after=1
            )
            await send_problem(scope, receive, send, error)
            return
        own = _caller(scope)
        share = max(1, most * 3 // 4)
        if own is not None and self._of_callers[kind, own] >= share:
            error = BusyError(f"{share} {kind} of this caller alone, the share of one", retry_after=1)
            await send_problem(scope, receive, send, error)
            return
        self._under_way[kind] += 1
        self._of_callers[kind, own] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way[kind] -= 1
            self._of_callers[kind, own] -= 1
            if not self._of_callers[kind, own]:
                del self._of_callers[kind, own]

    def _is_endless(self, scope: Scope) -> bool:
        # The SDK refuses a message whose method is not the one that the header says.
        if scope.get("method") == "POST":
            return b"subscriptions/listen" in header_values(scope, b"mcp-method")
        return scope.get("method") == "GET" and scope["path"].rstrip("/") in self._streams


def _caller(scope: Scope) -> str | None:
    """Whose share of the places a request takes; None for an admin."""
    identity = known_identity(scope)
    return None if identity is None or identity.access.sees_all_runs else identity.name


def _is_operators(scope: Scope) -> bool:
    return scope["path"] in {"/health", "/metrics"} or scope["path"].startswith("/admin/")


class Requests:
    """ASGI wrapper that can end what has no end of its own, so that it does not hold up a server that stops.

    That are event streams, which close as if they were over, and requests whose body does not come. It stands before
    everything else. A request that the HTTP server cancels while this ends is no failure, and none is logged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._endless: set[asyncio.Task[Any]] = set()
        self._ending = False

    def end(self) -> None:
        """Close event streams, and let go of requests that have not wholly come."""
        self._ending = True
        for task in self._endless:
            task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        task = asyncio.current_task()
        if scope["type"] != "http" or task is None:
            await self._app(scope, receive, send)
            return
        started = streams = complete = False
        # A request may be without an end twice: while its body comes, and while its answer goes.
        self._endless.add(task)

        async def taking() -> Message:
            message = await receive()
            if not streams and not (message["type"] == "http.request" and message.get("more_body", False)):
                self._endless.discard(task)
            return message

        async def giving(message: Message) -> None:
            nonlocal started, streams, complete
            started = True
            if message["type"] == "http.response.start" and _is_event_stream(message):
                streams = True
                self._endless.add(task)
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, taking, giving)
        except asyncio.CancelledError:
            if not self._ending:
                raise
            task.uncancel()
            if not started:
                await send_problem(scope, _nothing_more, send, _stopping())
            elif task in self._endless and not complete:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._endless.discard(task)


async def _nothing_more() -> Message:
    return {"type": "http.disconnect"}


def _stopping() -> BusyError:
    return BusyError("the server is stopping", code="shutting_down", retry_after=1)


def _is_event_stream(start: Message) -> bool:
    return any(value.startswith(b"text/event-stream") for value in header_values(start, b"content-type"))
