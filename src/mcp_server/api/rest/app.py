"""The REST interface: the same pipeline as plain HTTP resources, with its OpenAPI page at ``/docs``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from dataclasses import asdict
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Body, Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from mcp_server import __version__, metrics
from mcp_server.api.http import metrics_page
from mcp_server.api.http.authorization import scopes_of, step_up
from mcp_server.api.http.principals import caller
from mcp_server.api.http.problems import (
    GUARDED,
    PROBLEM_JSON,
    PROBLEM_SCHEMA,
    problem_body,
    problem_responses,
    retry_header,
)
from mcp_server.api.mcp import handlers as mcp_api
from mcp_server.api.rest.admin import ToolName, add_admin_routes
from mcp_server.api.rest.events import add_event_routes
from mcp_server.api.rest.health import add_health_routes
from mcp_server.api.rest.schemas import ConfigReport, Index, RunList, RunPage, ScopeReport, ToolList
from mcp_server.api.runs import raw_of, reader, run_page
from mcp_server.api.views import answer_output, tool_output
from mcp_server.config import describe
from mcp_server.errors import ArgumentError, NetworkToolsError, NotFoundError, PlatformError
from mcp_server.model.record import run_record
from mcp_server.model.run import Outcome
from mcp_server.model.untrusted import sanitize
from mcp_server.observability import tracing
from mcp_server.pipeline.signals import known_name
from mcp_server.scope.reading import MAX_CHARS
from mcp_server.tools.base import MCPBaseTool, ToolAnswer, ToolOutput
from mcp_server.tools.scope_tool import MAX_TARGETS, QueryText, RiskName, ScopeTool

if TYPE_CHECKING:
    from mcp_server.pipeline.respond import CallResult
    from mcp_server.server.enhanced import EnhancedMCPServer

HOSTS_IN_ANSWER = 100
T = TypeVar("T")

RunId = Annotated[str, Path(description="A run's id", examples=["r_0123456789abcdef01234567"])]
Cursor = Annotated[
    str | None,
    Query(
        description="next_cursor of the page before, unchanged; without it: the first page",
        # Said, not checked here: the store refuses any other, and says what to send instead.
        json_schema_extra={"minLength": 1, "pattern": "^[A-Za-z0-9_-]+$"},
    ),
]
_ARGUMENTS: dict[str, Any] = {
    "description": "The tool's parameters; GET /tools has the schema of each tool's own.",
    "required": ["target"],
    "properties": {
        "target": {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": MAX_CHARS},
                {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1, "maxLength": MAX_CHARS}},
            ]
        }
    },
}
_RAW: dict[str, Any] = {
    "description": "The bytes as the tool wrote them",
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    "headers": {
        "Content-Disposition": {"required": True, "schema": {"type": "string", "pattern": "^attachment; "}},
        "X-Content-Type-Options": {"required": True, "schema": {"const": "nosniff"}},
        "X-Content-SHA256": {"required": True, "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
    },
}


def build_rest(server: EnhancedMCPServer) -> FastAPI:
    """Build the REST application over a server's pipeline."""
    app = FastAPI(
        title="MCP Network Tools",
        version=__version__,
        description="Network discovery and assessment inside the owner's scope.",
        docs_url="/docs",
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        dependencies=[Depends(_known_query_only)],
    )
    _add_problem_handlers(app, server)
    _add_server_routes(app, server)
    add_health_routes(app, server)
    add_event_routes(app, server)
    add_admin_routes(app, server)
    _add_scope_route(app, server)
    _add_tool_routes(app, server)
    _add_run_routes(app, server)
    _document(app, server)
    return app


async def _known_query_only(request: Request) -> None:
    """Refuse a query parameter that the route does not have: a mistyped filter must not look like no filter.

    Not a plain function, which FastAPI would hand to a thread at every request.
    """
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    for name in request.query_params:
        if name not in known:
            hint = f"Known: {', '.join(sorted(known)) or 'none'}."
            raise ArgumentError(f"unknown query parameter {sanitize(name, 64)!r}", hint=hint)


def _problem_response(
    error: NetworkToolsError, extra: dict[str, Any] | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    return JSONResponse(
        {**problem_body(error), **(extra or {})},
        status_code=error.spec.http,
        media_type=PROBLEM_JSON,
        headers=retry_header(error) | (headers or {}),
    )


def _add_problem_handlers(app: FastAPI, server: EnhancedMCPServer) -> None:
    @app.exception_handler(NetworkToolsError)
    async def known(request: Request, error: NetworkToolsError) -> JSONResponse:
        if isinstance(error, PlatformError):
            server.pipeline.invalidate()  # also where it was not a call that failed, but a look at the store
        if error.code != "insufficient_scope":
            return _problem_response(error)
        name, value = step_up(request.scope, error)
        return _problem_response(error, headers={name.decode(): value.decode()})

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(sanitize(str(part), 64) for part in first["loc"])
        return _problem_response(ArgumentError(f"{field}: {sanitize(str(first['msg']), 200)}"))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == HTTPStatus.BAD_REQUEST:  # how FastAPI answers a body that is no JSON at all
            return _problem_response(ArgumentError("the request body cannot be read as JSON"))
        where = f"{request.method} {sanitize(request.url.path, 200)}"
        code = "method_not_allowed" if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED else "not_found"
        body = problem_body(NotFoundError(f"{where}: {error.detail}", code=code))
        return JSONResponse(body, status_code=body["status"], media_type=PROBLEM_JSON, headers=error.headers)

    @app.exception_handler(Exception)
    async def crash(_request: Request, _error: Exception) -> JSONResponse:
        # The framework logs the exception after this; nothing of it is for the caller.
        return _problem_response(NetworkToolsError("the server failed while it handled this request"))


def _add_server_routes(app: FastAPI, server: EnhancedMCPServer) -> None:
    @app.get(
        "/",
        summary="What this is and where to look",
        responses=problem_responses(*GUARDED) | {200: {"model": Index}},
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
        summary="Figures for Prometheus",
        response_class=Response,
        responses=problem_responses(*GUARDED, 404) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def gauges() -> Response:
        return Response(await metrics_page.page(server.config), headers={"Content-Type": metrics.CONTENT_TYPE})

    @app.get(
        "/config",
        summary="The configuration in force, secrets redacted",
        responses=problem_responses(*GUARDED) | {200: {"model": ConfigReport}},
    )
    async def config() -> dict[str, Any]:
        current = server.pipeline.current.value.config
        later = [f"{key.section}.{key.key}" for key in describe(current) if key.status == "later"]
        last = server.reloader.last
        return {
            "config": current.redacted(),
            "not_used_yet": later,
            "restart_needed": [asdict(item) for item in last.restart_needed] if last else [],
            "last_reload": last.as_dict() if last else None,
        }


def _add_scope_route(app: FastAPI, server: EnhancedMCPServer) -> None:
    @app.get(
        "/scope",
        summary="Whether targets may be touched, by which line, and what a call would cost; without any: the policy",
        responses=problem_responses(*GUARDED, 404) | {200: {"model": ScopeReport}},
    )
    async def scope(
        request: Request,
        target: Annotated[
            list[QueryText] | None,
            Query(
                max_length=MAX_TARGETS,
                description="Address, CIDR or name; repeat it for several",
                examples=[["192.168.1.10"]],
            ),
        ] = None,
        risk: Annotated[RiskName | None, Query(description="Ask for this risk")] = None,
        tool: Annotated[QueryText | None, Query(description="Plan a call of this tool, on target")] = None,
        parameters: Annotated[
            str | None,
            Query(
                description="Its arguments besides target",
                json_schema_extra={"contentMediaType": "application/json", "contentSchema": {"type": "object"}},
            ),
        ] = None,
    ) -> dict[str, Any]:
        given = {"target": target, "risk": risk, "tool": tool, "parameters": _json_object(parameters)}
        arguments = {key: value for key, value in given.items() if value is not None}
        return (await server.pipeline.answer(ScopeTool.tool_name(), arguments, caller(request))).body


def _json_object(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ArgumentError("parameters is not JSON", hint='Send an object, as in {"ports": "top:100"}.') from None


def _add_tool_routes(app: FastAPI, server: EnhancedMCPServer) -> None:
    @app.get(
        "/tools",
        summary="The tools, with their parameters",
        responses=problem_responses(*GUARDED) | {200: {"model": ToolList}},
    )
    async def tools(request: Request) -> dict[str, Any]:
        return {
            "tools": [
                mcp_api.describe(tool).model_dump(by_alias=True, mode="json", exclude_none=True)
                | {
                    "class": type(tool).__name__,
                    "command": tool.command_name if isinstance(tool, MCPBaseTool) else None,
                    "flags": sorted(tool.flags()) if isinstance(tool, MCPBaseTool) else [],
                }
                for tool in server.pipeline.registry_for(caller(request)).tools.values()
            ]
        }

    @app.post(
        "/tools/{tool_name}/execute",
        summary="Run a tool and wait for its result",
        response_model=ToolOutput,
        response_model_exclude_none=True,
        responses=problem_responses(*GUARDED, 400, 404, 409, 499, 502, 504, 507),
    )
    async def execute(
        request: Request,
        tool_name: ToolName,
        arguments: Annotated[
            dict[str, Any], Body(json_schema_extra=_ARGUMENTS, examples=[{"target": "127.0.0.1", "ports": "22,80"}])
        ],
    ) -> Any:
        actor = caller(request)
        named = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": known_name(server.pipeline.registry_for(actor), tool_name),
        }
        with tracing.request("POST", "/tools/{tool_name}/execute", request.headers, **named) as span:
            try:
                answer = await _unless_disconnected(request, server.pipeline.handle(tool_name, arguments, actor))
            except NetworkToolsError as error:
                span.set(**{"http.response.status_code": error.spec.http})
                raise
            if isinstance(answer, ToolAnswer):
                span.set(**{"http.response.status_code": 200})
                return answer_output(answer)
            span.set(
                **{
                    "http.response.status_code": answer.error.spec.http if answer.error else 200,
                    "mcp_network_tools.run_id": answer.run.id,
                    "mcp_network_tools.outcome": answer.run.outcome.value,
                }
            )
            if answer.error is not None:
                span.error(answer.error.code)
        output = await _tool_output(server, answer)
        if answer.error is not None:
            return _problem_response(answer.error, {"result": output.model_dump(mode="json", exclude_none=True)})
        return output


async def _tool_output(server: EnhancedMCPServer, answer: CallResult) -> ToolOutput:
    if answer.digest is None:
        return tool_output(answer)
    page = await (await server.store()).hosts(answer.run.id, limit=HOSTS_IN_ANSWER)
    return tool_output(answer, list(page.items), page.total)


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``, and cancel it when the client goes away: nobody is left to read what it would find."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # Here also when this request is cancelled, as a server that stops does: the run must have ended before it.
        watching.cancel()
        if not working.done():
            working.cancel()
        await asyncio.wait({working, watching})
    if working.cancelled():
        raise NetworkToolsError("the client went away", code="cancelled")
    return working.result()


def _add_run_routes(app: FastAPI, server: EnhancedMCPServer) -> None:
    @app.get(
        "/runs",
        summary="Runs, newest first, in pages",
        responses=problem_responses(*GUARDED) | {200: {"model": RunList}},
    )
    async def runs(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
        cursor: Cursor = None,
        tool: Annotated[str | None, Query(description="Only those of this tool")] = None,
        outcome: Annotated[Outcome | None, Query(description="Only those that ended so")] = None,
    ) -> dict[str, Any]:
        his = reader(caller(request))
        page = await (await server.store()).list_runs(
            limit=limit, cursor=cursor, tool=tool, outcome=outcome, caller=his
        )
        return {"runs": [run_record(run) for run in page.items], "total": page.total, "next_cursor": page.next_cursor}

    @app.get(
        "/runs/{run_id}",
        summary="One run with a page of the hosts it saw",
        responses=problem_responses(*GUARDED, 404) | {200: {"model": RunPage}},
    )
    async def run(
        request: Request,
        run_id: RunId,
        limit: Annotated[int, Query(ge=1, le=1000)] = HOSTS_IN_ANSWER,
        cursor: Cursor = None,
    ) -> dict[str, Any]:
        his = reader(caller(request))
        return await run_page(await server.store(), run_id, limit=limit, cursor=cursor, caller=his)

    @app.get(
        "/runs/{run_id}/raw",
        summary="The tool's own output, byte for byte",
        response_class=Response,
        responses=problem_responses(*GUARDED, 404, 409) | {200: _RAW},
    )
    async def raw(request: Request, run_id: RunId) -> Response:
        his = reader(caller(request))
        store = await server.store()
        record = await store.get_run(run_id, caller=his)
        kept = raw_of(record)
        # Read before the status line is sent: content that is missing or damaged must not begin as a 200.
        pieces = store.iter_raw(kept)
        first = await anext(pieces, b"")

        async def chunks() -> AsyncIterator[bytes]:
            yield first
            async for piece in pieces:
                yield piece

        headers = {
            # What a scanned host wrote must never be rendered by a browser as a page of this server.
            "Content-Disposition": f'attachment; filename="{record.id}.raw"',
            "X-Content-Type-Options": "nosniff",
            "X-Content-SHA256": kept.sha256,
            "Content-Length": str(kept.size),
        }
        return StreamingResponse(chunks(), media_type="application/octet-stream", headers=headers)


def _document(app: FastAPI, server: EnhancedMCPServer) -> None:
    original = app.openapi

    def openapi() -> dict[str, Any]:
        schema = original()
        components = schema.setdefault("components", {})
        components.setdefault("schemas", {})["Problem"] = PROBLEM_SCHEMA
        if server.config.server.auth == "token":
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"token": []}]
            for path, methods in schema["paths"].items():
                for method, operation in methods.items():
                    if (scopes := scopes_of(method.upper(), path)) is not None:
                        operation["security"] = [{"token": [scope]} for scope in scopes]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the page
