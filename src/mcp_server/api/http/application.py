"""The ASGI application of the HTTP interfaces: MCP at /mcp and the REST API at every other path.

Each request passes through the middleware in this order:

1. `HostMiddleware`: is it meant for this server?
2. `BearerMiddleware`: who is the caller?
3. `BodyLimitMiddleware`: does the body arrive, and is it small enough?
4. `PermissionMiddleware`: may the caller ask for this?
5. `RequestLimitMiddleware`: are too many requests in progress?

The body of an unauthenticated request is never kept, and its connection is closed after the answer. Requests for the
probes `/livez` and `/readyz` pass no middleware, because the answer is only yes or no.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from mcp_server.api.http.asgi import ASGIApp, Message, Receive, Scope, Send
from mcp_server.api.http.authentication import BearerMiddleware, NoAuthenticationMiddleware
from mcp_server.api.http.authorization import MCP_PATH, PermissionMiddleware
from mcp_server.api.http.middleware import (
    CLOSE,
    MAX_BODY,
    RESERVED_REQUESTS,
    BodyLimitMiddleware,
    HostMiddleware,
    RequestLimitMiddleware,
)
from mcp_server.api.http.request_metrics import RequestMetricsMiddleware
from mcp_server.api.http.sessions import SessionLimitMiddleware
from mcp_server.logger import get_logger

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server
    from starlette.applications import Starlette

    from mcp_server.api.http.failed_authentications import FailedAuthentications
    from mcp_server.api.rest.services import RestServices
    from mcp_server.identity.authenticator import Authenticator

logger = get_logger(__name__)

PROBES: Final = frozenset({"/livez", "/readyz"})
"""Paths that anybody may GET with any Host header, because an orchestrator has no token and knows no host name."""
MAX_SESSIONS: Final = 512
"""Maximum number of sessions of protocol revision 2025. Above it, an idle session is closed for each new session.

Later revisions have no sessions.
"""
SESSION_IDLE_SEC: Final = 15 * 60.0
"""Seconds after which an idle session is closed, because clients rarely close theirs."""


def build_application(
    services: RestServices,
    authenticator: Callable[[], Authenticator],
    failed_authentications: Callable[[], FailedAuthentications],
) -> ASGIApp:
    """Build the application of all HTTP interfaces.

    ``authenticator`` and ``failed_authentications`` are called only if ``server.auth`` is token. A newly created token
    is printed once.
    """
    from mcp_server.api.mcp.handlers import build_mcp_server
    from mcp_server.api.rest.app import build_rest

    pipeline, current = services.pipeline, services.pipeline.current
    settings = current.value.config.server
    if settings.auth == "token":
        _prepare(authenticator(), current.value.config.state_dir / "token")
    else:
        message = "Every process on this host can use every tool, because server.auth is 'none'."
        logger.warning("auth.none", message=message)

    def authenticate(app: ASGIApp) -> ASGIApp:
        if settings.auth == "none":
            return NoAuthenticationMiddleware(app)
        return BearerMiddleware(
            app, authenticator(), lambda: current.value.config.auth, failed_authentications=failed_authentications()
        )

    hosts, origins = frozenset(settings.hosts), frozenset(settings.origins)
    rest = build_rest(services)
    application = compose(
        mcp_app(build_mcp_server(pipeline, "http"), hosts=hosts, origins=origins),
        rest,
        authenticate=authenticate,
        authorize=lambda app: PermissionMiddleware(app, pipeline, rest.routes),
        hosts=hosts,
        origins=origins,
        max_requests=settings.max_connections,
    )
    return RequestMetricsMiddleware(application, rest.routes)


def _prepare(authenticator: Authenticator, path: object) -> None:
    token = authenticator.prepare()
    if token is not None:
        print(f"Token, shown once and kept in {path}: {token}", file=sys.stderr)
    if authenticator.lets_nobody_in:
        message = "No credential is accepted: auth.local_token is off, auth.issuer is not set, and no API key is valid."
        logger.warning("auth.nobody", message=message)


def mcp_app(
    server: Server[Any],
    *,
    hosts: Collection[str],
    origins: Collection[str],
    max_sessions: int = MAX_SESSIONS,
    session_idle_sec: float = SESSION_IDLE_SEC,
    max_body: int = MAX_BODY,
) -> Starlette:
    """Return an application that serves ``server`` at /mcp on the SDK's streamable HTTP transport.

    The transport detects the protocol revision of each request. An answer is a stream if the call reports progress or
    asks the client something, and JSON otherwise. The SDK checks ``hosts`` and ``origins`` as well. The lifespan of the
    application includes the lifespan of the server.
    """
    from mcp.server.transport_security import TransportSecuritySettings

    app = server.streamable_http_app(
        streamable_http_path=MCP_PATH,
        json_response=False,
        max_request_body_size=max_body,
        session_idle_timeout=session_idle_sec,
        # Sessions that open at the same moment can exceed the middleware's limit, so the SDK's is higher.
        max_sessions=2 * max_sessions,
        transport_security=TransportSecuritySettings(allowed_hosts=sorted(hosts), allowed_origins=sorted(origins)),
    )
    app.add_middleware(SessionLimitMiddleware, manager=server.session_manager, limit=max_sessions)
    return app


def compose(
    mcp: Starlette,
    rest: Starlette | None,
    *,
    authenticate: Callable[[ASGIApp], ASGIApp],
    hosts: Collection[str],
    origins: Collection[str],
    authorize: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    max_body: int = MAX_BODY,
    max_requests: int = 100,
) -> ASGIApp:
    """Combine two applications behind the middleware: ``mcp`` serves /mcp, and ``rest`` serves every other path.

    ``authenticate`` and ``authorize`` add the middleware for authentication and authorization. While ``max_requests``
    requests are in progress, further ones are answered with 429. The lifespans of both applications run: ``mcp`` starts
    first and ends last. Without ``rest``, ``mcp`` answers every other path with 404.
    """
    router = _Router(mcp, rest)
    limited = RequestLimitMiddleware(router, max_requests, streams=(MCP_PATH, "/events"), reserved=RESERVED_REQUESTS)
    app = authenticate(BodyLimitMiddleware(authorize(limited), max_body))
    checked = HostMiddleware(app, frozenset(hosts), frozenset(origins))

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in {"GET", "HEAD"} or scope["path"] not in PROBES:
            await checked(scope, receive, send)
            return

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], CLOSE]}
            elif scope["method"] == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        await router({**scope, "method": "GET"}, receive, send_and_close)

    return application


class _Router:
    """Chooses the application by path. A mount would change the path that the application sees."""

    def __init__(self, mcp: Starlette, rest: Starlette | None) -> None:
        from starlette.routing import Router

        self._mcp = mcp
        self._rest = rest or mcp
        self._lifespan = Router(lifespan=self._both_lifespans)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["path"].rstrip("/") == MCP_PATH:
            await self._mcp({**scope, "path": MCP_PATH}, receive, send)
        else:
            await self._rest(scope, receive, send)

    @asynccontextmanager
    async def _both_lifespans(self, _: Any) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for app in dict.fromkeys((self._mcp, self._rest)):
                await stack.enter_async_context(app.router.lifespan_context(app))
            yield
