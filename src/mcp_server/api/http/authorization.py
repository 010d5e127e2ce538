"""The permission that each route and each MCP method needs, and the middleware that asks for it.

What a tool call needs depends on its risk (`scope.permissions`). The pipeline judges that for every interface. Over MCP
its refusal is a tool result, and no client asks its user for more rights because of one. So if the parameters already
show that a permission is missing, the middleware answers with 403 and a challenge (MCP authorization, insufficient
scope; RFC 6750 section 3.1).
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
    ("GET", "/livez"): None,  # for an orchestrator, which no middleware stops
    ("GET", "/readyz"): None,
    ("GET", "/health"): _READ,
    ("GET", "/metrics"): _READ,  # of tools and codes; no metric names an actor
    ("GET", "/docs"): _READ,
    ("GET", "/docs/oauth2-redirect"): _READ,
    ("GET", "/openapi.json"): _READ,
    ("GET", "/scope"): _READ,
    ("GET", "/tools"): _READ,
    ("POST", "/tools/{tool_name}/execute"): None,  # by the risk of the call, which the pipeline judges
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
    ("GET", MCP_PATH): None,  # a stream that only says that the tools have changed
    ("POST", MCP_PATH): None,  # by the method of the message
    ("DELETE", MCP_PATH): None,
}
"""The permission that a route needs. None: any known caller may use it."""

METHODS: Final[Mapping[str, Permission | None]] = {
    "initialize": None,
    "server/discover": None,
    "ping": None,
    "tools/list": _READ,
    "tools/call": None,  # by the risk of the call
    "subscriptions/listen": _READ,  # to changes of the list of tools
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
            raise LookupError(f"no permission is named for {missing}")
        self._app = app
        self._pipeline = pipeline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a problem body."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal: NetworkToolsError | None = None
        route = route_of(scope)
        if scope["path"].endswith("\n"):  # the router would ignore it, and the middleware behind would not
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
        """The refusal of an actor without ``needed``, after it was logged. ``what`` is a row of the tables."""
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
    """The message as the SDK reads it, or None if it cannot be read.

    The SDK has one reader per protocol revision. That of 2026-07-28 is the standard library's, which accepts lone
    surrogates, deeper nesting, and UTF-16.
    """
    for reader in (from_json, json.loads):
        try:
            return reader(body)
        except (ValueError, RecursionError):
            continue
    return None


def _again(message: Message, receive: Receive) -> Receive:
    """A ``receive`` that returns ``message`` first, which was taken from ``receive``."""
    held = [message]

    async def receive_again() -> Message:
        return held.pop() if held else await receive()

    return receive_again


def with_metadata_url(scope: Scope, url: str | None) -> dict[str, Any]:
    """A copy of ``scope`` that holds the URL of the protected-resource metadata for challenges, or None without one."""
    return {**scope, _METADATA_URL: url}


def challenge(scope: Scope, error: str | None, needed: Iterable[Permission]) -> tuple[bytes, bytes]:
    """The ``WWW-Authenticate`` header of a refusal (RFC 6750 section 3, RFC 9728 section 5.1).

    ``error`` is ``invalid_token``, ``insufficient_scope``, or None if no credential was sent. ``needed`` are the
    permissions that the request needs. Every value is a word of this project or of the operator, never of the caller,
    so none needs escaping.
    """
    scopes = " ".join(sorted(permission.value for permission in needed))
    parts = {"error": error, "scope": scopes, "resource_metadata": scope.get(_METADATA_URL)}
    text = ", ".join(f'{name}="{value}"' for name, value in parts.items() if value)
    return b"www-authenticate", f"Bearer {text}".rstrip().encode("ascii")


def step_up(scope: Scope, error: NetworkToolsError) -> tuple[bytes, bytes]:
    """The ``WWW-Authenticate`` header of an ``insufficient_scope``.

    It names the permissions that the caller holds and those that it lacks, because clients ask their issuer for exactly
    the scopes in the header, and would lose the others.
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
    """The scopes of which a request needs one, for the OpenAPI page. None for a route that needs no credential."""
    if path in {"/livez", "/readyz"}:
        return None
    needed = ROUTES[method, path]
    return (needed.value,) if needed is not None else tuple(permission.value for permission in NEEDED.values())
