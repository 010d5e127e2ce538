"""The REST interface: the pipeline as plain HTTP resources, with its OpenAPI page at ``/docs``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from mcp_server import __version__, metrics
from mcp_server.api.http import metrics_page
from mcp_server.api.http.authorization import scopes_of, step_up
from mcp_server.api.http.problems import (
    COMMON_STATUSES,
    PROBLEM_JSON,
    PROBLEM_SCHEMA,
    problem_body,
    problem_response,
    problem_responses,
)
from mcp_server.api.rest.admin import add_admin_routes
from mcp_server.api.rest.events import add_event_routes
from mcp_server.api.rest.health import add_health_routes
from mcp_server.api.rest.runs import add_run_routes
from mcp_server.api.rest.schemas import ConfigReport, Index
from mcp_server.api.rest.services import RestServices
from mcp_server.api.rest.tools import add_scope_route, add_tool_routes
from mcp_server.errors import ArgumentError, NetworkToolsError, NotFoundError, PlatformError
from mcp_server.model.untrusted import sanitize

if TYPE_CHECKING:
    from mcp_server.config.reload_result import ReloadResult
    from mcp_server.pipeline.current import Current


def build_rest(services: RestServices) -> FastAPI:
    """Build the REST application."""
    app = FastAPI(
        title="MCP Network Tools",
        version=__version__,
        description="Network discovery and assessment inside the operator's scope.",
        docs_url="/docs",
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        dependencies=[Depends(_refuse_unknown_query)],
    )
    pipeline = services.pipeline
    _add_problem_handlers(app, pipeline.invalidate)
    _add_server_routes(app, pipeline.current, services.last_reload)
    add_health_routes(app, services.health, services.ready)
    add_event_routes(app, pipeline.events, lambda: pipeline.current.value.config.server.max_connections)
    add_admin_routes(app, pipeline, services.reload)
    add_scope_route(app, pipeline)
    add_tool_routes(app, pipeline)
    add_run_routes(app, pipeline.open_store)
    _extend_openapi(app, with_security=pipeline.current.value.config.server.auth == "token")
    return app


async def _refuse_unknown_query(request: Request) -> None:
    """Refuse a query parameter that the route does not have, so that a misspelled filter is not ignored.

    This is a coroutine because FastAPI runs a plain function in a thread, at each request.
    """
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    for name in request.query_params:
        if name not in known:
            raise ArgumentError(
                f"The query parameter {sanitize(name, 64)!r} is unknown.",
                hint=f"Known parameters: {', '.join(sorted(known)) or 'none'}.",
            )


def _add_problem_handlers(app: FastAPI, invalidate_health: Callable[[], None]) -> None:
    @app.exception_handler(NetworkToolsError)
    async def known(request: Request, error: NetworkToolsError) -> JSONResponse:
        if isinstance(error, PlatformError):
            invalidate_health()  # the pipeline does this only for calls, not for reading the store
        if error.code != "insufficient_scope":
            return problem_response(error)
        name, value = step_up(request.scope, error)
        return problem_response(error, headers={name.decode(): value.decode()})

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(sanitize(str(part), 64) for part in first["loc"])
        return problem_response(ArgumentError(f"{field}: {sanitize(str(first['msg']), 200)}."))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == HTTPStatus.BAD_REQUEST:  # FastAPI's answer to a body that is not JSON
            return problem_response(ArgumentError("The request body is not JSON."))
        request_line = f"{request.method} {sanitize(request.url.path, 200)}"
        code = "method_not_allowed" if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED else "not_found"
        body = problem_body(NotFoundError(f"{request_line}: {error.detail}.", code=code))
        return JSONResponse(body, status_code=body["status"], media_type=PROBLEM_JSON, headers=error.headers)

    @app.exception_handler(Exception)
    async def crash(_request: Request, _error: Exception) -> JSONResponse:
        # The framework logs the exception. The caller gets none of its text.
        return problem_response(NetworkToolsError("The server failed while it handled this request."))


def _add_server_routes(app: FastAPI, current: Current, last_reload: Callable[[], ReloadResult | None]) -> None:
    @app.get(
        "/",
        summary="The name, version and paths of this server",
        responses=problem_responses(*COMMON_STATUSES) | {200: {"model": Index}},
    )
    async def root() -> dict[str, Any]:
        return {
            "name": "mcp-network-tools",
            "version": __version__,
            "mcp": "/mcp",
            "tools": "/tools",
            "scope": "/scope",
            "runs": "/runs",
            "health": "/health",
            "events": "/events",
            "metrics": "/metrics",
            "documentation": "/docs",
        }

    @app.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=Response,
        responses=problem_responses(*COMMON_STATUSES, 404)
        | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics_text() -> Response:
        page = await metrics_page.page(current.value.config)
        return Response(page, headers={"Content-Type": metrics.CONTENT_TYPE})

    @app.get(
        "/config",
        summary="The configuration in force, secrets redacted",
        responses=problem_responses(*COMMON_STATUSES) | {200: {"model": ConfigReport}},
    )
    async def config() -> dict[str, Any]:
        in_force, last = current.value.config, last_reload()
        return {
            "config": in_force.redacted(),
            "restart_needed": [asdict(item) for item in last.restart_needed] if last else [],
            "last_reload": last.as_dict() if last else None,
        }


def _extend_openapi(app: FastAPI, *, with_security: bool) -> None:
    original = app.openapi

    def openapi() -> dict[str, Any]:
        schema = original()
        components = schema.setdefault("components", {})
        components.setdefault("schemas", {})["Problem"] = PROBLEM_SCHEMA
        if with_security:
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"token": []}]
            for path, methods in schema["paths"].items():
                for method, operation in methods.items():
                    if (scopes := scopes_of(method.upper(), path)) is not None:
                        operation["security"] = [{"token": [scope]} for scope in scopes]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the page
