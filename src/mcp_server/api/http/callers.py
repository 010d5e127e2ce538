"""The caller and the validated tool call of an HTTP request. The ASGI scope holds both for every interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mcp_server.api.http.asgi import Scope, header_values
from mcp_server.config.redact import without_secrets
from mcp_server.errors import AccessError
from mcp_server.identity.base import Identity
from mcp_server.model.run import Actor
from mcp_server.model.untrusted import sanitize
from mcp_server.pipeline.validate import ValidatedRequest

if TYPE_CHECKING:
    from starlette.requests import Request

_KEY: Final = "mcp_network_tools.identity"
_VALIDATED: Final = "mcp_network_tools.validated"


def with_identity(scope: Scope, identity: Identity) -> dict[str, Any]:
    """A copy of ``scope`` that names the caller, for the applications behind."""
    return {**scope, _KEY: identity}


def find_identity(scope: Scope) -> Identity | None:
    """The caller, or None if nothing has authenticated the request."""
    found = scope.get(_KEY)
    return found if isinstance(found, Identity) else None


def with_validated(scope: Scope, request: ValidatedRequest) -> dict[str, Any]:
    """A copy of ``scope`` with the tool call that was validated, for the applications behind."""
    return {**scope, _VALIDATED: request}


def validated_of(scope: Scope) -> ValidatedRequest | None:
    """The tool call that was validated, or None."""
    found = scope.get(_VALIDATED)
    return found if isinstance(found, ValidatedRequest) else None


def identity_of(scope: Scope) -> Identity:
    """The caller. Raises AccessError ``unauthorized`` if nothing has authenticated the request."""
    found = find_identity(scope)
    if found is None:
        raise AccessError("The request was not authenticated.")
    return found


def actor_of(scope: Scope, interface: str, client: str | None = None) -> Actor:
    """The caller as the pipeline knows it. ``client`` defaults to the User-Agent of the request."""
    identity = identity_of(scope)
    return Actor(identity.name, interface, _user_agent(scope) if client is None else client, identity.access)


def rest_actor(request: Request) -> Actor:
    """The caller of a REST route."""
    return actor_of(request.scope, "rest")


def client_name(given: str) -> str:
    """Return the client's own name in the form that is stored with a run: bounded, and without credentials."""
    return sanitize(without_secrets(given[:1024]), 128)


def _user_agent(scope: Scope) -> str:
    values = header_values(scope, b"user-agent")
    return client_name(values[0].decode("latin-1")) if values else ""
