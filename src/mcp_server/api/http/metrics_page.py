"""The metrics page: what a scraper reads at ``/metrics``, and where it stands on a port of its own.

Over HTTP it is a page like the others. Over stdio there is no port unless the owner names one: several servers on
one machine, each started by its client, must not fight for 9090.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from mcp_server import metrics
from mcp_server.api.http.authentication import BearerAuth, NoAuthentication
from mcp_server.api.http.authorization import step_up
from mcp_server.api.http.connections import HEAD_SEC, KEEP_ALIVE_SEC, BoundedSocket, RequestLimit, deadline_protocol
from mcp_server.api.http.middleware import HostGuard
from mcp_server.api.http.problems import ASGIApp, Receive, Scope, Send, send_problem
from mcp_server.api.http.request_identity import identity_of
from mcp_server.errors import NetworkToolsError, NotFoundError
from mcp_server.model.access import Permission
from mcp_server.scope.permissions import require_permission

if TYPE_CHECKING:
    from mcp_server.config import Config
    from mcp_server.identity.authenticator import Authenticator

logger = logging.getLogger(__name__)

PATH: Final = "/metrics"
HOST: Final = "127.0.0.1"
"""The address of a page on a port of its own: for a scraper on this machine."""
MAX_REQUESTS: Final = 8
MAX_CONNECTIONS: Final = 32
STOP_SEC: Final = 1


async def page(config: Config) -> bytes:
    """The page in the media type `metrics.CONTENT_TYPE`; raises NotFoundError where the owner switched it off.

    An empty page would read as a server where nothing happens.
    """
    for key in ("enabled", "prometheus_enabled"):
        if not getattr(config.metrics, key):
            hint = f"Its owner can set metrics.{key} to true."
            raise NotFoundError(f"metrics are not offered: metrics.{key} is false", hint=hint)
    # The numbers are copied here, where their readers belong; writing them out takes longer, and 50 ms at first.
    return await asyncio.to_thread(metrics.render, metrics.collect())


class MetricsPage:
    """The page on a port of its own, at 127.0.0.1, behind the same checks of Host and credential as the HTTP interfaces.

    It is there where ``metrics.prometheus_port`` was set by the owner and is not the port of the HTTP interfaces. In the
    kernel and rootless tiers the server's 127.0.0.1 is not the host's, so there is none (``guarded``).
    """

    def __init__(
        self, config: Callable[[], Config], authenticator: Callable[[], Authenticator], *, guarded: bool
    ) -> None:
        """Take the configuration from ``config`` whenever it is asked for, so that a reload holds."""
        self._config = config
        self._authenticator = authenticator
        self._guarded = guarded
        self._port: int | None = None
        self._task: asyncio.Task[None] | None = None

    def follow(self) -> None:
        """Open, move or close the page as the configuration says now; returns at once, and what fails is logged."""
        port = _wanted_port(self._config())
        if port is not None and self._guarded:
            logger.warning("metrics.page_unreachable port=%d: the guard's 127.0.0.1 is not this host's", port)
            port = None
        if port == self._port and (port is None or (self._task is not None and not self._task.done())):
            return
        self._port, before = port, self._task
        self._task = asyncio.create_task(self._serve(before, port), name="metrics-page")

    async def stop(self) -> None:
        """Close the page; safe to call twice, or without `follow`."""
        task, self._task = self._task, None
        await _ended(task)

    async def _serve(self, before: asyncio.Task[None] | None, port: int | None) -> None:
        await _ended(before)
        if port is None:
            return
        try:
            app = await asyncio.to_thread(self._application, port)
            sock = BoundedSocket(socket.create_server((HOST, port)), MAX_CONNECTIONS)
        except (OSError, NetworkToolsError) as error:
            # Calls are what this server is for: without its page it still does all of them.
            logger.warning("metrics.page_not_served port=%d: %s", port, error)
            return
        with sock:
            logger.info("metrics.page_served url=%s", f"http://{HOST}:{port}{PATH}")
            await _serve_until_cancelled(app, sock)

    def _application(self, port: int) -> ASGIApp:
        import uvicorn  # noqa: F401 - 100 ms that the event loop shall not wait for

        app: ASGIApp = RequestLimit(self._answer, MAX_REQUESTS)
        config = self._config()
        if config.server.auth == "token":
            authenticator = self._authenticator()
            authenticator.prepare()
            app = BearerAuth(app, authenticator, lambda: self._config().auth)
        else:
            app = NoAuthentication(app)
        return HostGuard(app, frozenset({f"{HOST}:{port}", f"localhost:{port}"}), frozenset())

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] != "http" or scope["path"] != PATH:
                raise NotFoundError(f"only {PATH} is here")
            if scope["method"] not in {"GET", "HEAD"}:
                raise NotFoundError(f"{PATH} is only read", code="method_not_allowed")
            require_permission(identity_of(scope).access, Permission.TOOLS_READ, f"GET {PATH} was asked for")
            body = await page(self._config())
        except NetworkToolsError as error:
            stepped = [step_up(scope, error)] if error.code == "insufficient_scope" else []
            await send_problem(scope, receive, send, error, stepped)
            return
        headers = [
            (b"content-type", metrics.CONTENT_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _wanted_port(config: Config) -> int | None:
    settings, server = config.metrics, config.server
    if not (settings.enabled and settings.prometheus_enabled and settings.is_set("prometheus_port")):
        return None
    shared = server.transport == "http" and settings.prometheus_port == server.port
    return None if shared else settings.prometheus_port


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait({task})


async def _serve_until_cancelled(app: ASGIApp, sock: socket.socket) -> None:
    import uvicorn

    class Uvicorn(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            # Signals are the business of the server that this page belongs to.
            yield

    settings: dict[str, Any] = {"proxy_headers": False, "server_header": False, "timeout_keep_alive": KEEP_ALIVE_SEC}
    server = Uvicorn(
        uvicorn.Config(
            app,
            http=deadline_protocol(HEAD_SEC),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=STOP_SEC,
            **settings,
        )
    )
    serving = asyncio.create_task(server.serve([sock]))
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise
