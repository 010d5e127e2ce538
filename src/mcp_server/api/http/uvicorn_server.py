"""Serves an ASGI application with uvicorn: reports when it is ready, stops on request, does not wait for streams."""

from __future__ import annotations

import asyncio
import functools
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, Protocol

import uvicorn

from mcp_server.api.http.asgi import ASGIApp, Message, Receive, Scope, Send, header_values
from mcp_server.api.http.connections import (
    HEAD_SEC,
    KEEP_ALIVE_SEC,
    AcceptErrorHandler,
    BoundedSocket,
    Listener,
    deadline_protocol,
    most_connections,
)
from mcp_server.api.http.problems import send_problem
from mcp_server.errors import BusyError, NetworkToolsError

_LAST_EVENTS_SEC: Final = 0.2
"""Seconds for the last events of streams before they are closed."""
_CLEANUP_SEC: Final = 0.5
"""Seconds for cancelled requests to clean up."""
_TLS_CLOSE_SEC: Final = 2.0
"""Seconds within which a TLS client must confirm that it has read everything (RFC 8446 section 6.1)."""


class Stop(Protocol):
    """The signals by which a server learns that it must stop. `server.lifecycle.Lifecycle` implements it."""

    ended: asyncio.Event
    """Set when the server must close."""
    hurried: asyncio.Event
    """Set when the server must not wait for requests any longer."""

    @property
    def left(self) -> float:
        """Seconds that requests in progress may still take."""
        ...


async def serve_http(
    app: ASGIApp,
    listener: Listener,
    *,
    shutdown_grace: float = 30.0,
    head_sec: float = HEAD_SEC,
    ready: Callable[[str], None] | None = None,
    stop: Stop | None = None,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve ``app`` on ``listener`` until ``stop`` asks to stop or, without ``stop``, until SIGTERM or SIGINT.

    ``ready`` is called with the base address once requests are answered. At a stop, the server stops listening and ends
    event streams. Requests in progress have ``stop.left`` seconds, or ``shutdown_grace`` seconds without ``stop``. Then
    they are cancelled. A second SIGINT cancels them at once. A connection that sends no complete head within
    ``head_sec`` seconds is closed, and so is each connection above `most_connections`. With ``tls`` only TLS is
    accepted.

    Raises NetworkToolsError if the application does not start. The log has the reason.
    """

    def on_ready() -> None:
        if ready is not None:
            ready(replace(listener, scheme="http" if tls is None else "https").url)

    # Accepted connections inherit this option. asyncio sets it only on sockets that report TCP as their protocol, and a
    # socket created without a protocol does not. Without the option, the body of an answer is sent up to 40 ms late,
    # after the client has acknowledged the head.
    listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock = BoundedSocket(listener.sock, most_connections())
    try:
        await _make_server(app, on_ready, shutdown_grace, head_sec, stop, tls).serve([sock])
    except SystemExit as exc:
        raise NetworkToolsError("The HTTP server could not start. The log above has the reason.") from exc
    finally:
        sock.close()


def _make_server(
    app: ASGIApp,
    on_ready: Callable[[], None],
    shutdown_grace: float,
    head_sec: float,
    stop: Stop | None,
    tls: ssl.SSLContext | None,
) -> uvicorn.Server:
    endless = EndlessRequestMiddleware(app)
    config = uvicorn.Config(
        endless,
        http=deadline_protocol(head_sec),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SEC,
        ssl_context_factory=None if tls is None else lambda *_: tls,
    )
    return _Uvicorn(config, endless, on_ready, shutdown_grace, stop, head_sec)


class _Uvicorn(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        endless: EndlessRequestMiddleware,
        on_ready: Callable[[], None],
        shutdown_grace: float,
        stop: Stop | None,
        head_sec: float,
    ) -> None:
        super().__init__(config)
        self._endless, self._on_ready = endless, on_ready
        self._head_sec = head_sec
        self._shutdown_grace, self._stop = shutdown_grace, stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(AcceptErrorHandler())
        if self.config.is_ssl:
            # Uvicorn passes no limits. asyncio's own are 60 s for a handshake and 30 s for the end of a connection.
            limits = {"ssl_handshake_timeout": self._head_sec, "ssl_shutdown_timeout": _TLS_CLOSE_SEC}
            loop.create_server = functools.partial(loop.create_server, **limits)  # type: ignore[method-assign]
        try:
            await super().startup(sockets)
        finally:
            vars(loop).pop("create_server", None)
        self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        if self._stop is not None and self._stop.ended.is_set():
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        left = self._shutdown_grace if self._stop is None else self._stop.left
        self.config.timeout_graceful_shutdown = left  # type: ignore[assignment]  # asyncio.wait_for() takes fractions
        helpers = [asyncio.create_task(self._end_streams())]
        if self._stop is not None:
            helpers.append(asyncio.create_task(self._abort_if_hurried(self._stop.hurried)))
        try:
            await super().shutdown(sockets)
            if self.force_exit:  # uvicorn skips this then, and the application would be interrupted
                await self.lifespan.shutdown()
        finally:
            for helper in helpers:
                helper.cancel()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_CLEANUP_SEC)

    async def _end_streams(self) -> None:
        # The results of calls that have just ended are sent first. Some of them are events of such streams.
        await asyncio.sleep(_LAST_EVENTS_SEC)
        self._endless.end()

    async def _abort_if_hurried(self, hurried: asyncio.Event) -> None:
        await hurried.wait()
        self.force_exit = True
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Uvicorn's own version raises the signal again after a clean end. That would kill the process before the store
        # and the audit log are closed.
        if self._stop is not None or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class EndlessRequestMiddleware:
    """Can end the requests that do not end by themselves, so that they do not delay a server that stops.

    Those are event streams, which end as if they were complete, and requests whose body does not arrive. Place it
    before everything else. If uvicorn cancels a request after `end`, nothing is logged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._endless: set[asyncio.Task[Any]] = set()
        self._ending = False

    def end(self) -> None:
        """End event streams, and requests that have not arrived completely."""
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
        # A request may be endless twice: while its body arrives, and while its answer is sent.
        self._endless.add(task)

        async def watched_receive() -> Message:
            message = await receive()
            if not streams and not (message["type"] == "http.request" and message.get("more_body", False)):
                self._endless.discard(task)
            return message

        async def watched_send(message: Message) -> None:
            nonlocal started, streams, complete
            started = True
            if message["type"] == "http.response.start" and _is_event_stream(message):
                streams = True
                self._endless.add(task)
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, watched_receive, watched_send)
        except asyncio.CancelledError:
            if not self._ending:
                raise
            task.uncancel()
            if not started:
                stopping = BusyError("The server is stopping.", code="shutting_down", retry_after=1)
                await send_problem(scope, _receive_nothing, send, stopping)
            elif task in self._endless and not complete:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._endless.discard(task)


async def _receive_nothing() -> Message:
    return {"type": "http.disconnect"}


def _is_event_stream(start: Message) -> bool:
    return any(value.startswith(b"text/event-stream") for value in header_values(start, b"content-type"))
