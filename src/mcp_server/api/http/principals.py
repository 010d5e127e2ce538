"""Who is behind an HTTP request: put into the ASGI scope where the credential is checked, read by every interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mcp_server.api.http.problems import Scope, header_values
from mcp_server.config.redact import without_secrets
from mcp_server.errors import AccessError
from mcp_server.model.access import Access
from mcp_server.model.run import Actor
from mcp_server.model.untrusted import sanitize

if TYPE_CHECKING:
    from starlette.requests import Request

_KEY: Final = "mcp_network_tools.principal"


@dataclass(frozen=True, slots=True)
class Principal:
    """A known caller: its stable name, and what it may do."""

    name: str
    access: Access

    def actor(self, interface: str, client: str = "") -> Actor:
        """The caller as the pipeline knows it."""
        return Actor(self.name, interface, client, self.access)


def with_principal(scope: Scope, principal: Principal) -> dict[str, Any]:
    """The scope for the apps behind, which says who calls."""
    return {**scope, _KEY: principal}


def named_in(scope: Scope) -> Principal | None:
    """Who calls; None where nobody has said so."""
    found = scope.get(_KEY)
    return found if isinstance(found, Principal) else None


def principal_of(scope: Scope) -> Principal:
    """Who calls; raises AccessError ``unauthorized`` where nobody has said so, which no guarded route meets."""
    found = named_in(scope)
    if found is None:
        raise AccessError("nobody has checked who calls")
    return found


def client_of(scope: Scope) -> str:
    """What the client of a request says it is."""
    values = header_values(scope, b"user-agent")
    return client_name(values[0].decode("latin-1")) if values else ""


def client_name(said: str) -> str:
    """What a client says it is, as it may be kept with a run: bounded, and without a credential that it put there."""
    return sanitize(without_secrets(said[:1024]), 128)


def caller(request: Request) -> Actor:
    """Who sent a request to the REST API."""
    return principal_of(request.scope).actor("rest", client_of(request.scope))
