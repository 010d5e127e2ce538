"""The permission that each route and each MCP method needs, and the middleware that requires it.

The permission for a tool call depends on its risk (`scope.permissions`). The pipeline checks it for every interface.
Over MCP, a refusal by the pipeline is a tool result, and clients do not ask their users for more rights after a tool
result. So if the parameters already show that a permission is missing, the middleware answers with 403 and a challenge
(MCP authorization, insufficient scope; RFC 6750 section 3.1).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import from_json
from starlette.routing import compile_path

from mcp_server import metrics
from mcp_server.api.http.asgi import ASGIApp, Message, Receive, Scope, Send
from mcp_server.api.http.callers import actor_of, identity_of, with_validated
from mcp_server.api.http.problems import send_problem
from mcp_server.errors import NetworkToolsError, NotFoundError
from mcp_server.model.access import Permission
from mcp_server.model.run import Actor
from mcp_server.scope.permissions import ALL, NEEDED, require_permission

if TYPE_CHECKING:
    from mcp_server.identity.base import Identity
    from mcp_server.pipeline.pipeline import Pipeline
    from mcp_server.pipeline.validate import ValidatedRequest

MCP_PATH: Final = "/mcp"
_METADATA_URL: Final = "mcp_network_tools.resource_metadata"
_READ, _RUNS, _ADMIN = Permission.TOOLS_READ, Permission.RUNS_READ, Permission.ADMIN

ROUTES: Final[Mapping[tuple[str, str], Permission | None]] = {
    ("GET", "/"): _READ,
    ("GET", "/livez"): None,  # for an orchestrator; no middleware checks this path
    ("GET", "/readyz"): None,
    ("GET", "/health"): _READ,
    ("GET", "/metrics"): _READ,  # metrics have labels for tools and error codes, not for actors
    ("GET", "/docs"): _READ,
    ("GET", "/docs/oauth2-redirect"): _READ,
    ("GET", "/openapi.json"): _READ,
    ("GET", "/scope"): _READ,
    ("GET", "/tools"): _READ,
    ("POST", "/tools/{tool_name}/execute"): None,  # depends on the risk of the call; the pipeline checks it
    ("GET", "/runs"): _RUNS,
    ("GET", "/runs/{run_id}"): _RUNS,
    ("GET", "/runs/{run_id}/raw"): _RUNS,
    ("GET", "/events"): _RUNS,
    ("GET", "/config"): _ADMIN,
    ("POST", "/admin/reload"): _ADMIN,
    ("GET", "/admin/tools"): _ADMIN,
    ("POST", "/admin/tools/{tool_name}/{action}"): _ADMIN,
    ("GET", "/admin/breakers"): _ADMIN,
    ("POST", "/admin/breakers/{tool_name}/{action}"): _ADMIN,
    ("GET", MCP_PATH): None,  # a stream with notifications of changed tools only
    ("POST", MCP_PATH): None,  # depends on the method of the message
    ("DELETE", MCP_PATH): None,
}
"""The permission that a route needs. None means that any authenticated caller may use it."""

METHODS: Final[Mapping[str, Permission | None]] = {
    "initialize": None,
    "server/discover": None,
    "ping": None,
    "tools/list": _READ,
    "tools/call": None,  # depends on the risk of the call
    "subscriptions/listen": _READ,  # only to changes of the tool list
    "resources/list": _RUNS,
    "resources/templates/list": _RUNS,
    "resources/read": _RUNS,
}
"""The permission that an MCP method needs. The SDK refuses any other method as unknown."""

# The router's own expressions, so that the same paths match here. Their ``$`` also matches before a line break.
_PATTERNS: Final = [(method, compile_path(path)[0], path) for method, path in ROUTES]


class PermissionMiddleware:
    """Answers 403 with a challenge if the caller lacks a permission that the request needs.

    Place it behind authentication and behind the middleware that reads the body. ``routes`` are those of the
    application behind. Raises LookupError if one of them has no row in `ROUTES`.
    """

    def __init__(self, app: ASGIApp, pipeline: Pipeline, routes: Iterable[Any] = ()) -> None:
        if missing := sorted(set(served(routes)) - set(ROUTES)):
            raise LookupError(f"ROUTES has no row for {missing}")
        self._app = app
        self._pipeline = pipeline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a problem body."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal: NetworkToolsError | None = None
        route = route_of(scope)
        if scope["path"].endswith("\n"):  # the router ignores it, other middleware does not
            refusal = NotFoundError("No path of this server ends with a line break.", code="not_found")
        elif route is not None:
            refusal = await self._missing(ROUTES[route], " ".join(route), actor_of(scope, "rest"))
        if refusal is None and route == ("POST", MCP_PATH) and not _has_all(identity_of(scope)):
            message = await receive()
            request, refusal = await self._check_message(message.get("body", b""), actor_of(scope, "http"))
            receive = _again(message, receive)
            scope = scope if request is None else with_validated(scope, request)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        headers = [step_up(scope, refusal)] if refusal.code == "insufficient_scope" else []
        await send_problem(scope, receive, send, refusal, headers)

    async def _check_message(
        self, body: bytes, actor: Actor
    ) -> tuple[ValidatedRequest | None, NetworkToolsError | None]:
        """Return the validated request if the message calls a tool, and the refusal if a permission is missing."""
        # The body decides, not the headers Mcp-Method and Mcp-Name, because the body is carried out in both protocol
        # revisions. The SDK refuses headers that differ from it.
        message = _read(body)
        method, params = (message.get("method"), message.get("params")) if isinstance(message, dict) else (None, None)
        if not isinstance(method, str):
            return None, None
        if method != "tools/call":
            return None, await self._missing(METHODS.get(method), method, actor)
        name, given = (params.get("name"), params.get("arguments")) if isinstance(params, dict) else (None, None)
        arguments = given if isinstance(given, dict) else {}
        if not isinstance(name, str):
            return None, None
        request = self._pipeline.validate(name, arguments, actor)
        return request, await self._pipeline.refuse(request) if request.lacks_permission else None

    async def _missing(self, needed: Permission | None, what: str, actor: Actor) -> NetworkToolsError | None:
        """Return and log the refusal if the actor lacks ``needed``, else return None. ``what`` names the request."""
        if needed is None:
            return None
        try:
            require_permission(actor.access, needed, what)
        except NetworkToolsError as refusal:
            metrics.count("mcp_refusals_total", code=refusal.code)
            await self._pipeline.denials.log(actor, what, what, {}, refusal)
            return refusal
        return None


def _has_all(identity: Identity) -> bool:
    return identity.access.permissions >= ALL | {_RUNS}


def _read(body: bytes) -> Any:
    """Return the message as the SDK reads it, or None if it cannot be read.

    The SDK has one reader per protocol revision. For 2026-07-28 it uses the reader of the standard library, which
    accepts lone surrogates, deeper nesting, and UTF-16.
    """
    for reader in (from_json, json.loads):
        try:
            return reader(body)
        except (ValueError, RecursionError):
            continue
    return None


def _again(message: Message, receive: Receive) -> Receive:
    """Return a callable that returns ``message`` first, and then the further messages of ``receive``."""
    held = [message]

    async def receive_again() -> Message:
        return held.pop() if held else await receive()

    return receive_again


def with_metadata_url(scope: Scope, url: str | None) -> dict[str, Any]:
    """Return a copy of ``scope`` with the URL of the protected-resource metadata (or None), for challenges."""
    return {**scope, _METADATA_URL: url}


def challenge(scope: Scope, error: str | None, needed: Iterable[Permission]) -> tuple[bytes, bytes]:
    """Return the ``WWW-Authenticate`` header of a refusal (RFC 6750 section 3, RFC 9728 section 5.1).

    ``error`` is ``invalid_token``, ``insufficient_scope``, or None if no credential was sent. ``needed`` are the
    permissions that the request needs. Every value comes from this project or from the operator, never from the caller,
    so no value needs escaping.
    """
    scopes = " ".join(sorted(permission.value for permission in needed))
    parts = {"error": error, "scope": scopes, "resource_metadata": scope.get(_METADATA_URL)}
    text = ", ".join(f'{name}="{value}"' for name, value in parts.items() if value)
    return b"www-authenticate", f"Bearer {text}".rstrip().encode("ascii")


def step_up(scope: Scope, error: NetworkToolsError) -> tuple[bytes, bytes]:
    """Return the ``WWW-Authenticate`` header of an ``insufficient_scope`` error.

    The header lists the permissions that the caller holds and the permissions that it lacks. Clients ask their issuer
    for exactly the scopes in the header, so they would lose any scope that is not listed.
    """
    lacking = {Permission(word) for word in error.details["scope"].split()}
    return challenge(scope, "insufficient_scope", identity_of(scope).access.permissions | lacking)


def route_of(scope: Scope) -> tuple[str, str] | None:
    """The row of `ROUTES` that a request falls under, or None if there is no such route."""
    method = "GET" if scope.get("method") == "HEAD" else scope.get("method", "GET")
    path = scope["path"].rstrip("/") or "/"
    if (method, path) in ROUTES:
        return method, path
    found = ((own, row) for own, form, row in _PATTERNS if own == method and form.match(path))
    return next(found, None)


def served(routes: Iterable[Any]) -> list[tuple[str, str]]:
    """The methods and paths of Starlette's routes. A HEAD that belongs to a GET is left out."""
    found = [(method, route.path) for route in routes for method in sorted(getattr(route, "methods", None) or ())]
    return [row for row in found if row[0] != "HEAD"]


def scopes_of(method: str, path: str) -> tuple[str, ...] | None:
    """Return the scopes of a route for the OpenAPI page. A request needs one of them. None: it needs no credential."""
    if path in {"/livez", "/readyz"}:
        return None
    needed = ROUTES[method, path]
    return (needed.value,) if needed is not None else tuple(permission.value for permission in NEEDED.values())
