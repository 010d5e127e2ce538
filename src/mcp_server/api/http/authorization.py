"""What each route and each MCP method needs, in one table; and the guard that asks for it before a interface is reached.

A tool's call needs what its risk says (`scope.permission`), which the pipeline judges for every interface. Over MCP that
would be a tool's result, and no client asks its user for more rights because of one: so what the parameters tell
already is judged here, and answered with 403 and a challenge (MCP authorization, insufficient scope; RFC 6750
section 3.1).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import from_json
from starlette.routing import compile_path

from mcp_server import metrics
from mcp_server.api.http.challenges import challenge
from mcp_server.api.http.principals import Principal, client_of, principal_of
from mcp_server.api.http.problems import ASGIApp, Message, Receive, Scope, Send, send_problem
from mcp_server.api.http.serve import MCP_PATH
from mcp_server.errors import NetworkToolsError, NotFoundError
from mcp_server.model.access import Permission
from mcp_server.model.run import Actor
from mcp_server.scope.permission import ALL, NEEDED, require_permission

if TYPE_CHECKING:
    from mcp_server.pipeline.pipeline import Pipeline
    from mcp_server.pipeline.validate import ValidatedRequest

_READ, _RUNS, _ADMIN = Permission.TOOLS_READ, Permission.RUNS_READ, Permission.ADMIN

ROUTES: Final[Mapping[tuple[str, str], Permission | None]] = {
    ("GET", "/"): _READ,
    ("GET", "/livez"): None,  # an orchestrator's, which comes past every guard
    ("GET", "/readyz"): None,
    ("GET", "/health"): _READ,
    ("GET", "/metrics"): _READ,  # of tools and codes; no figure has an actor's name
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
    ("GET", MCP_PATH): None,  # a stream that says no more than that the tools have changed
    ("POST", MCP_PATH): None,  # by the method of the message
    ("DELETE", MCP_PATH): None,
}
"""Permission that a route needs; None: whoever is known."""

METHODS: Final[Mapping[str, Permission | None]] = {
    "initialize": None,
    "server/discover": None,
    "ping": None,
    "tools/list": _READ,
    "tools/call": None,  # by the risk of the call
    "subscriptions/listen": _READ,  # of changes of the list of tools
    "resources/list": _RUNS,
    "resources/templates/list": _RUNS,
    "resources/read": _RUNS,
}
"""Permission that an MCP method needs; what is not here has no handler, and is refused as unknown."""

_VALIDATED: Final = "mcp_network_tools.validated"

# The router's own expressions, because what it takes for a route must be one here: its ``$`` passes over a line break.
_PATTERNS: Final = [(method, compile_path(path)[0], path) for method, path in ROUTES]


class Permissions:
    """ASGI guard that answers 403 with a challenge where the caller lacks what the request needs.

    It stands behind the guard that says who calls and the one that has read the body. ``routes`` are those of the
    application behind: one that has no row in `ROUTES` is an error here, at the start.
    """

    def __init__(self, app: ASGIApp, pipeline: Pipeline, routes: Iterable[Any] = ()) -> None:
        if missing := sorted(set(served(routes)) - set(ROUTES)):
            raise LookupError(f"no permission is named for {missing}")
        self._app = app
        self._pipeline = pipeline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a problem body and what would open it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        principal = principal_of(scope)
        refusal: NetworkToolsError | None = None
        route = route_of(scope)
        if scope["path"].endswith("\n"):  # the router would pass over it, and the guards behind would not
            refusal = NotFoundError("no address here ends with a line break", code="not_found")
        elif route is not None:
            refusal = await self._refusal_of_route(route, scope, principal)
        if refusal is None and route == ("POST", MCP_PATH) and not _lacks_nothing(principal):
            message = await receive()
            scope = {**scope, _VALIDATED: None}
            refusal = await self._refusal_of_message(message.get("body", b""), scope, principal)
            receive = _again(message, receive)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        stepped = [step_up(scope, refusal)] if refusal.code == "insufficient_scope" else []
        await send_problem(scope, receive, send, refusal, stepped)

    async def _refusal_of_route(
        self, route: tuple[str, str], scope: Scope, principal: Principal
    ) -> NetworkToolsError | None:
        return await self._missing(ROUTES[route], " ".join(route), principal.actor("rest", client_of(scope)))

    async def _refusal_of_message(self, body: bytes, scope: Scope, principal: Principal) -> NetworkToolsError | None:
        # By the body and not by the headers Mcp-Method and Mcp-Name: it is what is carried out, in both wire eras. The
        # SDK refuses headers that say something else.
        actor = principal.actor("http", client_of(scope))
        message = _read(body)
        method, params = (message.get("method"), message.get("params")) if isinstance(message, dict) else (None, None)
        if not isinstance(method, str):
            return None
        if method != "tools/call":
            return await self._missing(METHODS.get(method), method, actor)
        name, given = (params.get("name"), params.get("arguments")) if isinstance(params, dict) else (None, None)
        arguments = given if isinstance(given, dict) else {}
        if not isinstance(name, str):
            return None
        request = scope[_VALIDATED] = self._pipeline.validate(name, arguments, actor)
        return await self._pipeline.refuse(request) if request.lacks_permission else None

    async def _missing(self, needed: Permission | None, what: str, actor: Actor) -> NetworkToolsError | None:
        """The refusal of an actor without ``needed``, after it was put on the log; ``what`` is a row of the tables."""
        if needed is None:
            return None
        try:
            require_permission(actor.access, needed, f"{what} was asked for")
        except NetworkToolsError as refusal:
            metrics.count("mcp_refusals_total", code=refusal.code)
            await self._pipeline.denials.log(actor, what, what, {}, refusal)
            return refusal
        return None


def validated_of(scope: Scope) -> ValidatedRequest | None:
    """Return the tool call of this request as it was validated here. None if nothing was validated."""
    return scope.get(_VALIDATED)


def _lacks_nothing(principal: Principal) -> bool:
    return principal.access.permissions >= ALL | {_RUNS}


def _read(body: bytes) -> Any:
    """The message as the SDK will read it, None where it will not: it has one reader for each era.

    That of 2026-07-28 is the standard library's, which takes lone surrogates, deeper nesting, and UTF-16.
    """
    for reader in (from_json, json.loads):
        try:
            return reader(body)
        except (ValueError, RecursionError):
            continue
    return None


def _again(message: Message, receive: Receive) -> Receive:
    """A ``receive`` that gives the message first which was taken from it."""
    held = [message]

    async def receive_again() -> Message:
        return held.pop() if held else await receive()

    return receive_again


def step_up(scope: Scope, error: NetworkToolsError) -> tuple[bytes, bytes]:
    """The ``WWW-Authenticate`` header of an ``insufficient_scope``: what the caller holds, and what it lacks.

    Both, because clients ask their issuer for just what stands there, and would lose the rest.
    """
    lacking = {Permission(word) for word in error.details["scope"].split()}
    return challenge(scope, "insufficient_scope", principal_of(scope).access.permissions | lacking)


def route_of(scope: Scope) -> tuple[str, str] | None:
    """The row of `ROUTES` that a request falls under; None where there is no such route, as the router will say."""
    method = "GET" if scope.get("method") == "HEAD" else scope.get("method", "GET")
    path = scope["path"].rstrip("/") or "/"
    if (method, path) in ROUTES:
        return method, path
    found = ((own, row) for own, form, row in _PATTERNS if own == method and form.match(path))
    return next(found, None)


def served(routes: Iterable[Any]) -> list[tuple[str, str]]:
    """The methods and paths of Starlette's routes, a HEAD that goes with a GET left out."""
    found = [(method, route.path) for route in routes for method in sorted(getattr(route, "methods", None) or ())]
    return [row for row in found if row[0] != "HEAD"]


def scopes_of(method: str, path: str) -> tuple[str, ...] | None:
    """The scopes of which a request needs one, as the API page says; None for a route that asks for no credential."""
    if path in {"/livez", "/readyz"}:
        return None
    needed = ROUTES[method, path]
    return (needed.value,) if needed is not None else tuple(permission.value for permission in NEEDED.values())
