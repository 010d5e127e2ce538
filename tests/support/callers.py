"""Authentication with one token and without files, for tests of the application behind it."""

from __future__ import annotations

from collections.abc import Callable

from mcp_server.api.http.asgi import ASGIApp
from mcp_server.api.http.authentication import BearerMiddleware, NoAuthenticationMiddleware
from mcp_server.config.sections import AuthConfig
from mcp_server.identity.base import Identity
from mcp_server.identity.local_token import LocalToken


class _OneToken:
    def __init__(self, token: str) -> None:
        self._token = LocalToken(token)

    async def admit(self, credential: str, peer: str) -> Identity:
        return await self._token.check(credential)


def token_only(token: str | None) -> Callable[[ASGIApp], ASGIApp]:
    """Return the authentication middleware for `compose`: one token allows everything. None means no authentication."""
    if token is None:
        return NoAuthenticationMiddleware
    return lambda app: BearerMiddleware(app, _OneToken(token), AuthConfig)
