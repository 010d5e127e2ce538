"""Authentication of HTTP requests: the credential is checked before any part of the body is read (RFC 6750).

Also serves the protected-resource metadata (RFC 9728), which name the issuer of tokens to a client without a token.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from mcp_server import metrics
from mcp_server.api.http.asgi import ASGIApp, Receive, Scope, Send, header_values
from mcp_server.api.http.authorization import MCP_PATH, ROUTES, challenge, route_of, with_metadata_url
from mcp_server.api.http.callers import with_identity
from mcp_server.api.http.middleware import CLOSE
from mcp_server.api.http.problems import send_problem
from mcp_server.errors import AccessError, NetworkToolsError
from mcp_server.identity.base import TOKEN_NAME, Identity, Rejected
from mcp_server.model.access import FULL_ACCESS, Permission

if TYPE_CHECKING:
    from mcp_server.api.http.failed_authentications import FailedAuthentications
    from mcp_server.config.sections import AuthConfig

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"
METADATA_PATHS: Final = frozenset({WELL_KNOWN, f"{WELL_KNOWN}{MCP_PATH}"})
"""Clients ask for the path of the MCP endpoint first (MCP 2025-11-25, authorization)."""
_OPERATOR: Final = Identity(TOKEN_NAME, FULL_ACCESS)


class Admits(Protocol):
    """Checks credentials: `identity.authenticator.Authenticator`."""

    async def admit(self, credential: str, peer: str) -> Identity:
        """Return the caller that ``credential`` identifies. ``peer`` is the address that sent it.

        Raises Rejected for a wrong credential, NetworkToolsError if it cannot be checked now.
        """
        ...


class BearerMiddleware:
    """Answers 401 to a request without a valid credential. Adds the caller to the ASGI scope of any other request.

    A credential is only read from ``Authorization: Bearer``. RFC 6750 section 2.3 warns of query strings, because they
    are logged. Other answers are 429 ``locked_out`` and 503 ``identity_unavailable``. If ``settings`` have an issuer,
    the metadata are served to every client.
    """

    def __init__(
        self,
        app: ASGIApp,
        authenticator: Admits,
        settings: Callable[[], AuthConfig],
        failed_authentications: FailedAuthentications | None = None,
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._settings = settings
        self._failed_authentications = failed_authentications

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a problem body and a ``WWW-Authenticate`` challenge."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        settings = self._settings()
        if settings.issuer and scope.get("method") in {"GET", "HEAD"} and scope["path"] in METADATA_PATHS:
            await _send_metadata(scope, send, settings)
            return
        scope = with_metadata_url(scope, metadata_url(settings))
        try:
            identity = await self._identify(scope)
        except Rejected as rejected:
            await self._refuse(scope, receive, send, rejected)
        except NetworkToolsError as error:
            if error.code == "locked_out":
                await self._report(scope, Rejected("any", "locked_out"))
            await send_problem(scope, receive, send, error, [CLOSE])
        else:
            await self._app(_authenticated(scope, identity), receive, send)

    async def _identify(self, scope: Scope) -> Identity:
        values = header_values(scope, b"authorization")
        if not values:
            raise Rejected("none", "missing")
        scheme, _, credential = values[0].partition(b" ")
        if len(values) != 1 or scheme.lower() != b"bearer":
            raise Rejected("none", "malformed")
        return await self._authenticator.admit(credential.strip(b" ").decode("latin-1"), _peer(scope))

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, rejected: Rejected) -> None:
        await self._report(scope, rejected)
        missing = rejected.reason == "missing"
        # Every wrong credential gets the same answer, so that the answer does not help to guess one.
        message = (
            "The request has no Authorization header."
            if missing
            else "The Authorization header holds no valid bearer token."
        )
        header = challenge(scope, None if missing else "invalid_token", [_least_permission(scope)])
        await send_problem(scope, receive, send, AccessError(message, code="unauthorized"), [header, CLOSE])

    async def _report(self, scope: Scope, rejected: Rejected) -> None:
        metrics.count("mcp_authentication_failures_total", kind=rejected.kind, reason=rejected.reason)
        # A first request without a credential is normal: the answer tells the client which one to send.
        if self._failed_authentications is not None and rejected.reason != "missing":
            await self._failed_authentications.log(_peer(scope), rejected)


class NoAuthenticationMiddleware:
    """For ``server.auth`` none: every caller is the operator."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        await self._app(scope if scope["type"] == "lifespan" else _authenticated(scope, _OPERATOR), receive, send)


def metadata_url(settings: AuthConfig) -> str | None:
    """The URL of the metadata as clients reach it. None without an issuer."""
    if not settings.issuer:
        return None
    parts = urlsplit(settings.audience)
    # A proxy that adds its own path must forward the resulting URL to this server.
    return f"{parts.scheme}://{parts.netloc}{WELL_KNOWN}{parts.path.rstrip('/')}"


async def _send_metadata(scope: Scope, send: Send, settings: AuthConfig) -> None:
    """Answer with the document of RFC 9728 section 2."""
    document = {
        "resource": settings.audience,
        "authorization_servers": [settings.issuer],
        "scopes_supported": [permission.value for permission in Permission],
        "bearer_methods_supported": ["header"],
        "resource_name": "MCP Network Tools Server",
    }
    body = json.dumps(document).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"max-age=300"),
        CLOSE,
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _authenticated(scope: Scope, identity: Identity) -> dict[str, Any]:
    """Return a copy of ``scope`` that holds the caller, for this project's interfaces and for the SDK.

    The SDK treats a session id as unknown if a different user opened that session (CVE-2026-52869). The SDK gets the
    name of the caller, and no token.
    """
    from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
    from mcp.server.auth.provider import AccessToken

    user = AuthenticatedUser(AccessToken(token="", client_id=identity.name, scopes=[]))
    return {**with_identity(scope, identity), "user": user}


def _least_permission(scope: Scope) -> Permission:
    """Return the lowest permission that a request to this path may need."""
    route = route_of(scope)
    return (route and ROUTES[route]) or Permission.TOOLS_READ


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"
