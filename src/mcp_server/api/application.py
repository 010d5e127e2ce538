"""The HTTP application: MCP and REST side by side behind the same checks."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcp_server.api.http.problems import ASGIApp
    from mcp_server.server.enhanced import EnhancedMCPServer

logger = logging.getLogger(__name__)


def build_application(server: EnhancedMCPServer) -> Any:
    """Compose the ASGI application of every HTTP interface; prints a token it had to make, once."""
    from mcp_server.api.http.authentication import BearerAuth, NoAuthentication
    from mcp_server.api.http.authorization import Permissions
    from mcp_server.api.http.request_metrics import RequestMetrics
    from mcp_server.api.http.serve import compose, mcp_app
    from mcp_server.api.mcp.handlers import build_mcp_server
    from mcp_server.api.rest.app import build_rest

    settings = server.config.server
    if settings.auth == "none":
        logger.warning("auth.none every process on this host can use every tool: server.auth is 'none'")
    else:
        token = server.background.authenticator.prepare()
        if token is not None:
            print(f"Token, shown once and kept in {server.config.state_dir / 'token'}: {token}", file=sys.stderr)
        if server.background.authenticator.lets_nobody_in:
            logger.warning("auth.nobody auth.local_token is off, there is no auth.issuer, and no API key is valid")

    def authenticate(app: ASGIApp) -> ASGIApp:
        if settings.auth == "none":
            return NoAuthentication(app)
        return BearerAuth(
            app, server.background.authenticator, lambda: server.config.auth, server.background.failed_authentications
        )

    hosts, origins = frozenset(settings.hosts), frozenset(settings.origins)
    rest = build_rest(server)
    application = compose(
        mcp_app(build_mcp_server(server.pipeline, "http"), hosts=hosts, origins=origins),
        rest,
        authenticate=authenticate,
        authorize=lambda app: Permissions(app, server.pipeline, rest.routes),
        hosts=hosts,
        origins=origins,
        max_requests=settings.max_connections,
    )
    return RequestMetrics(application, rest.routes)
