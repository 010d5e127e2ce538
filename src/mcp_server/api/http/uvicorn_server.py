"""Uvicorn as it is used here: it says when it is ready, closes when it is told to, and waits for nothing endless."""

from __future__ import annotations

import asyncio
import functools
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import uvicorn

from mcp_server.api.http.connections import KEEP_ALIVE_SEC, AcceptErrors, Requests, deadline_protocol
from mcp_server.api.http.problems import ASGIApp

_LAST_EVENTS_SEC: Final = 0.2
_CANCELLED_SEC: Final = 0.5
"""Seconds for the last events of streams that are closed, and for requests that were cancelled to clean up."""
_FAREWELL_SEC: Final = 2.0
"""Seconds that a TLS client has to say that it has read everything (RFC 8446 section 6.1)."""


class Stop(Protocol):
    """Who says when the server closes, where it does not listen for signals itself: `lifecycle.Lifecycle`."""

    ended: asyncio.Event
    """Set when it is to close."""
    hurried: asyncio.Event
    """Set when it is not to wait for anybody any longer."""

    @property
    def left(self) -> float:
        """Seconds that requests under way get."""
        ...


def make_server(
    app: ASGIApp,
    ready: Callable[[], None],
    *,
    shutdown_grace: float,
    head_sec: float,
    stop: Stop | None,
    tls: ssl.SSLContext | None = None,
) -> uvicorn.Server:
    """The server of ``app``; `interfaces.http.serve_http` says what the rest means."""
    requests = Requests(app)
    config = uvicorn.Config(
        requests,
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
    return _Uvicorn(config, requests, ready, shutdown_grace, stop, head_sec)


class _Uvicorn(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        requests: Requests,
        ready: Callable[[], None],
        shutdown_grace: float,
        stop: Stop | None,
        head_sec: float,
    ) -> None:
        super().__init__(config)
        self._requests, self._ready = requests, ready
        self._head_sec = head_sec
        self._shutdown_grace, self._stop = shutdown_grace, stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(AcceptErrors())
        if self.config.is_ssl:
            # Uvicorn names no limits, and asyncio's own are a minute for a handshake and half of one for a farewell.
            limits = {"ssl_handshake_timeout": self._head_sec, "ssl_shutdown_timeout": _FAREWELL_SEC}
            loop.create_server = functools.partial(loop.create_server, **limits)  # type: ignore[method-assign]
        try:
            await super().startup(sockets)
        finally:
            vars(loop).pop("create_server", None)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        if self._stop is not None and self._stop.ended.is_set():
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        left = self._shutdown_grace if self._stop is None else self._stop.left
        self.config.timeout_graceful_shutdown = left  # type: ignore[assignment]  # asyncio.wait_for() takes fractions
        helpers = [asyncio.create_task(self._end_endless())]
        if self._stop is not None:
            helpers.append(asyncio.create_task(self._hurry(self._stop.hurried)))
        try:
            await super().shutdown(sockets)
            if self.force_exit:  # it leaves this out then, and the app would be cut off in the middle
                await self.lifespan.shutdown()
        finally:
            for helper in helpers:
                helper.cancel()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_CANCELLED_SEC)

    async def _end_endless(self) -> None:
        # The answers of calls that have just ended go out first, some of them as events of such streams.
        await asyncio.sleep(_LAST_EVENTS_SEC)
        self._requests.end()

    async def _hurry(self, hurried: asyncio.Event) -> None:
        await hurried.wait()
        self.force_exit = True
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again after a clean end, which would kill the process before its owner
        # could close the store and the audit log.
        if self._stop is not None or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
