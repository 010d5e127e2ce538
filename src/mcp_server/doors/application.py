"""The HTTP application: MCP and REST side by side behind the same checks."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcp_server.doors.problems import ASGIApp
    from mcp_server.server import EnhancedMCPServer

logger = logging.getLogger(__name__)


def build_application(server: EnhancedMCPServer) -> Any:
    """Compose the ASGI application of every HTTP door; prints a token it had to make, once."""
    from mcp_server.doors.auth import BearerAuth, OpenDoor
    from mcp_server.doors.http import compose, mcp_app
    from mcp_server.doors.mcp import build_mcp_server
    from mcp_server.doors.measured import Measured
    from mcp_server.doors.permissions import Permissions
    from mcp_server.doors.rest import build_rest

    settings = server.config.server
    if settings.auth == "none":
        logger.warning("auth.none every process on this host can use every tool: server.auth is 'none'")
    else:
        token = server.upkeep.gate.prepare()
        if token is not None:
            print(f"Token, shown once and kept in {server.config.state_dir / 'token'}: {token}", file=sys.stderr)
        if server.upkeep.gate.lets_nobody_in:
            logger.warning("auth.nobody auth.local_token is off, there is no auth.issuer, and no API key is valid")

    def authenticate(app: ASGIApp) -> ASGIApp:
        if settings.auth == "none":
            return OpenDoor(app)
        return BearerAuth(app, server.upkeep.gate, lambda: server.config.auth, server.upkeep.strangers)

    hosts, origins = frozenset(settings.hosts), frozenset(settings.origins)
    rest = build_rest(server)
    application = compose(
        mcp_app(build_mcp_server(server.pipeline, "http"), hosts=hosts, origins=origins),
        rest,
        authenticate=authenticate,
        authorise=lambda app: Permissions(app, server.pipeline, rest.routes),
        hosts=hosts,
        origins=origins,
        max_requests=settings.max_connections,
    )
    return Measured(application, rest.routes)
