"""Bounds on connections that uvicorn lacks: a deadline for a request's head, and a cap behind authentication."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from mcp_server.doors.problems import ASGIApp, Receive, Scope, Send, send_problem
from mcp_server.errors import BusyError

HEAD_SEC: Final = 10.0
"""Seconds a connection has to send the head of a request; one that only holds its place is closed then."""
KEEP_ALIVE_SEC: Final = 100
"""Seconds a connection may rest between requests. Longer than clients keep one unused (httpx 5 s, nginx 60 s, Go's
net/http 90 s), so that the client closes first: a request that crosses the server's own closing is lost.
"""


def deadline_protocol(head_sec: float = HEAD_SEC) -> Any:  # noqa: C901 - short methods of a class, counted as one function
    """Uvicorn's h11 protocol with a deadline for each request's head (RFC 9112 section 9.5 leaves it open)."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class DeadlineProtocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
            super().connection_made(transport)
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

    It stands behind authentication: connections of strangers cannot use the places up.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on while there is a place."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if self._under_way >= self._limit:
            error = BusyError(f"{self._limit} requests are under way, as many as server.max_connections allows")
            await send_problem(scope, receive, send, error)
            return
        self._under_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way -= 1
