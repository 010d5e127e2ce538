"""Metrics of HTTP requests: their number by route and status, and the seconds until the answer begins.

A route is a template that the applications declare, never the path that a caller sent. A path that matches no template
is counted as ``other``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

from mcp_server import metrics
from mcp_server.api.http.asgi import ASGIApp, Message, Receive, Scope, Send
from mcp_server.api.http.authorization import MCP_PATH

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that are used as a label. A caller may send any other word, which is counted as ``other``."""
GONE: Final = "499"
"""The status that is counted if the client disconnects before the answer begins.

nginx and the error ``cancelled`` use the same status.
"""


class RequestMetricsMiddleware:
    """Counts requests. Place it before everything else, so that requests which other middleware refuses are counted.

    A request is counted when its answer begins: a stream may last for hours, and a slow reader is not a slow server.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[Any]) -> None:
        """Count the requests to ``app``. ``routes`` are Starlette's or FastAPI's, whose templates are used."""
        from starlette.routing import compile_path

        self._app = app
        paths = dict.fromkeys([MCP_PATH, *(route.path for route in routes if hasattr(route, "path"))])
        self._exact = frozenset(path for path in paths if "{" not in path)
        self._patterns = [(compile_path(path)[0], path) for path in paths if "{" in path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count it when its answer begins."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        answered = False

        async def counting_send(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start" and not answered:
                answered = True
                self._count(scope, str(message["status"]), time.perf_counter() - started)
            await send(message)

        crashed = False
        try:
            await self._app(scope, receive, counting_send)
        except Exception:
            crashed = True
            raise
        finally:
            if not answered:
                # Uvicorn answers 500 to an exception by itself. A client that has disconnected gets no answer.
                self._count(scope, "500" if crashed else GONE, time.perf_counter() - started)

    def route(self, path: str) -> str:
        """The template that ``path`` falls under, or ``other``."""
        trimmed = path.rstrip("/")
        if trimmed == MCP_PATH:
            return MCP_PATH
        if path in self._exact:
            return path
        return next((template for pattern, template in self._patterns if pattern.match(path)), metrics.OTHER)

    def _count(self, scope: Scope, status: str, seconds: float) -> None:
        route = self.route(scope["path"])
        method = scope["method"] if scope["method"] in METHODS else metrics.OTHER
        metrics.count("mcp_http_requests_total", method=method, route=route, status=status)
        metrics.observe("mcp_http_request_seconds", seconds, route=route)
