"""The metrics page: the text that Prometheus reads at ``/metrics``, and a small server for it on its own port.

Over HTTP it is a page like the others. Over stdio there is no port unless the operator configures one, because several
servers on one machine, each started by its client, would compete for port 9090.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from mcp_server import metrics
from mcp_server.api.http.asgi import ASGIApp, Receive, Scope, Send
from mcp_server.api.http.authentication import BearerMiddleware, NoAuthenticationMiddleware
from mcp_server.api.http.authorization import step_up
from mcp_server.api.http.callers import identity_of
from mcp_server.api.http.connections import HEAD_SEC, KEEP_ALIVE_SEC, BoundedSocket, deadline_protocol
from mcp_server.api.http.middleware import HostMiddleware, RequestLimitMiddleware
from mcp_server.api.http.problems import send_problem
from mcp_server.errors import NetworkToolsError, NotFoundError
from mcp_server.logger import get_logger
from mcp_server.model.access import Permission
from mcp_server.scope.permissions import require_permission

if TYPE_CHECKING:
    from mcp_server.config import Config
    from mcp_server.identity.authenticator import Authenticator

logger = get_logger(__name__)

PATH: Final = "/metrics"
HOST: Final = "127.0.0.1"
"""The address of the page on its own port. Only a Prometheus on this machine can reach it."""
MAX_REQUESTS: Final = 8
MAX_CONNECTIONS: Final = 32
STOP_SEC: Final = 1


async def page(config: Config) -> bytes:
    """Return the page in the media type `metrics.CONTENT_TYPE`. Raises NotFoundError if the operator disabled it.

    An empty page instead of the error would look like an idle server.
    """
    for key in ("enabled", "prometheus_enabled"):
        if not getattr(config.metrics, key):
            hint = f"The operator can set metrics.{key} to true."
            raise NotFoundError(f"This server offers no metrics: metrics.{key} is false.", hint=hint)
    metrics.refresh()
    # A page of 1,000 lines takes 10 ms.
    return await asyncio.to_thread(metrics.exposition)


class MetricsPage:
    """The page on its own port of 127.0.0.1, with the same checks of Host and credential as the HTTP interfaces.

    It is served if ``metrics.prometheus_port`` is set and is not the port of the HTTP interfaces. It is not served in
    the kernel and rootless tiers (``guarded``), because there 127.0.0.1 of the server is not 127.0.0.1 of the host.

    ``config`` and ``authenticator`` are called each time they are needed, so that a reload takes effect.
    """

    def __init__(
        self, config: Callable[[], Config], authenticator: Callable[[], Authenticator], *, guarded: bool
    ) -> None:
        self._config = config
        self._authenticator = authenticator
        self._guarded = guarded
        self._port: int | None = None
        self._task: asyncio.Task[None] | None = None

    def follow(self) -> None:
        """Open, move or close the page, as the configuration says. Returns at once. A failure is logged."""
        port = _wanted_port(self._config())
        if port is not None and self._guarded:
            message = "Inside a guard, 127.0.0.1 is not 127.0.0.1 of the host."
            logger.warning("metrics.page_unreachable", port=port, message=message)
            port = None
        if port == self._port and (port is None or (self._task is not None and not self._task.done())):
            return
        self._port, before = port, self._task
        self._task = asyncio.create_task(self._serve(before, port), name="metrics-page")

    async def stop(self) -> None:
        """Close the page. Can be called twice, or without `follow`."""
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
            # The server can still run calls without this page.
            logger.warning("metrics.page_not_served", port=port, message=str(error))
            return
        with sock:
            logger.info("metrics.page_served", url=f"http://{HOST}:{port}{PATH}")
            await _serve_until_cancelled(app, sock)

    def _application(self, port: int) -> ASGIApp:
        import uvicorn  # noqa: F401 - takes 100 ms, here outside the event loop

        app: ASGIApp = RequestLimitMiddleware(self._answer, MAX_REQUESTS)
        config = self._config()
        if config.server.auth == "token":
            authenticator = self._authenticator()
            authenticator.prepare()
            app = BearerMiddleware(app, authenticator, lambda: self._config().auth)
        else:
            app = NoAuthenticationMiddleware(app)
        return HostMiddleware(app, frozenset({f"{HOST}:{port}", f"localhost:{port}"}), frozenset())

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] != "http" or scope["path"] != PATH:
                raise NotFoundError(f"This server has only {PATH}.")
            if scope["method"] not in {"GET", "HEAD"}:
                raise NotFoundError(f"{PATH} accepts only GET and HEAD.", code="method_not_allowed")
            require_permission(identity_of(scope).access, Permission.TOOLS_READ, f"GET {PATH}")
            body = await page(self._config())
        except NetworkToolsError as error:
            headers = [step_up(scope, error)] if error.code == "insufficient_scope" else []
            await send_problem(scope, receive, send, error, headers)
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
            # The server that this page belongs to handles signals.
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
