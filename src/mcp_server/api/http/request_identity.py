"""The identity behind an HTTP request, which the authentication middleware puts into the ASGI scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mcp_server.api.http.problems import Scope, header_values
from mcp_server.config.redact import without_secrets
from mcp_server.errors import AccessError
from mcp_server.identity.base import Identity
from mcp_server.model.run import Actor
from mcp_server.model.untrusted import sanitize

if TYPE_CHECKING:
    from starlette.requests import Request

_KEY: Final = "mcp_network_tools.identity"


def with_identity(scope: Scope, identity: Identity) -> dict[str, Any]:
    """A copy of ``scope`` that holds the identity of the caller, for the applications behind the middleware."""
    return {**scope, _KEY: identity}


def known_identity(scope: Scope) -> Identity | None:
    """The identity of the caller, or None if the request was not authenticated."""
    found = scope.get(_KEY)
    return found if isinstance(found, Identity) else None


def identity_of(scope: Scope) -> Identity:
    """The identity of the caller; raises AccessError ``unauthorized`` if the request was not authenticated."""
    found = known_identity(scope)
    if found is None:
        raise AccessError("The request was not authenticated.")
    return found


def client_of(scope: Scope) -> str:
    """The User-Agent of a request, as `client_name` returns it."""
    values = header_values(scope, b"user-agent")
    return client_name(values[0].decode("latin-1")) if values else ""


def client_name(given: str) -> str:
    """The name that a client gave itself, as a run may keep it: bounded, and without a credential put there."""
    return sanitize(without_secrets(given[:1024]), 128)


def caller(request: Request) -> Actor:
    """The caller of a request to the REST API."""
    return identity_of(request.scope).actor("rest", client_of(request.scope))
