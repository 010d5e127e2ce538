"""Who calls: the credential of each HTTP request is checked before anything of its body is read (RFC 6750)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from mcp_server import metrics
from mcp_server.api.http.authorization import ROUTES, route_of
from mcp_server.api.http.challenges import challenge, with_metadata_url
from mcp_server.api.http.middleware import CLOSE
from mcp_server.api.http.problems import ASGIApp, Receive, Scope, Send, header_values, send_problem
from mcp_server.api.http.request_identity import with_identity
from mcp_server.api.http.resource_metadata import metadata_url, send_metadata, serves_metadata
from mcp_server.errors import AccessError, NetworkToolsError
from mcp_server.identity.base import TOKEN_NAME, Identity, Rejected
from mcp_server.model.access import FULL_ACCESS, Permission

if TYPE_CHECKING:
    from mcp_server.api.http.failed_authentications import FailedAuthentications
    from mcp_server.config.sections import AuthConfig

_ANYBODY: Final = Identity(TOKEN_NAME, FULL_ACCESS)


class Authenticates(Protocol):
    """What knows credentials: `identity.authenticator.Authenticator`."""

    async def admit(self, credential: str, peer: str) -> Identity:
        """Who a credential stands for, that came from the address ``peer``; raises Rejected or NetworkToolsError."""
        ...


class BearerAuth:
    """ASGI guard that lets nobody in whom the gate does not know, and says to the apps behind who it is.

    A credential is only ever read from ``Authorization: Bearer`` (RFC 6750 section 2.3 warns of query strings: they end
    up in logs). Without a good one the answer is 401, 429 ``locked_out`` or 503 ``identity_unavailable``. The metadata
    of the resource are there for everybody, while ``settings`` name an issuer.
    """

    def __init__(
        self,
        app: ASGIApp,
        authenticator: Authenticates,
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
        if serves_metadata(scope, settings):
            await send_metadata(scope, send, settings)
            return
        scope = with_metadata_url(scope, metadata_url(settings))
        try:
            identity = await self._identify(scope)
        except Rejected as rejected:
            await self._refuse(scope, receive, send, rejected)
        except NetworkToolsError as error:
            if error.code == "locked_out":
                await self._note(scope, Rejected("any", "locked_out"))
            await send_problem(scope, receive, send, error, [CLOSE])
        else:
            await self._app(known(scope, identity), receive, send)

    async def _identify(self, scope: Scope) -> Identity:
        values = header_values(scope, b"authorization")
        if not values:
            raise Rejected("none", "missing")
        scheme, _, credential = values[0].partition(b" ")
        if len(values) != 1 or scheme.lower() != b"bearer":
            raise Rejected("none", "malformed")
        return await self._authenticator.admit(credential.strip(b" ").decode("latin-1"), _peer(scope))

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, rejected: Rejected) -> None:
        await self._note(scope, rejected)
        missing = rejected.reason == "missing"
        # One answer for every wrong credential: it tells nothing about how wrong it was.
        message = (
            "no Authorization header was sent" if missing else "the Authorization header holds no valid bearer token"
        )
        header = challenge(scope, None if missing else "invalid_token", [_least_needed(scope)])
        await send_problem(scope, receive, send, AccessError(message, code="unauthorized"), [header, CLOSE])

    async def _note(self, scope: Scope, rejected: Rejected) -> None:
        metrics.count("mcp_authentication_failures_total", kind=rejected.kind, reason=rejected.reason)
        # That none was sent is how clients find out what to send.
        if self._failed_authentications is not None and rejected.reason != "missing":
            await self._failed_authentications.log(_peer(scope), rejected)


class NoAuthentication:
    """ASGI wrapper for ``server.auth`` none: whoever asks is the owner."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        await self._app(scope if scope["type"] == "lifespan" else known(scope, _ANYBODY), receive, send)


def known(scope: Scope, identity: Identity) -> dict[str, Any]:
    """The scope for the apps behind, which says who calls: to this project's interfaces, and to the SDK.

    The SDK answers a session's id as an unknown one where another user than the one who opened it sends it
    (CVE-2026-52869). What it gets is a name and no token.
    """
    from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
    from mcp.server.auth.provider import AccessToken

    user = AuthenticatedUser(AccessToken(token="", client_id=identity.name, scopes=[]))
    return {**with_identity(scope, identity), "user": user}


def _least_needed(scope: Scope) -> Permission:
    """The permission that the least request to this address needs, whatever stands in its body."""
    route = route_of(scope)
    return (route and ROUTES[route]) or Permission.TOOLS_READ


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"
