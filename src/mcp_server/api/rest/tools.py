"""REST routes that list the tools, run one, and explain the scope."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from fastapi import Body, FastAPI, Path, Query, Request

from mcp_server.api.http.callers import rest_actor
from mcp_server.api.http.problems import COMMON_STATUSES, problem_response, problem_responses
from mcp_server.api.mcp.descriptions import describe
from mcp_server.api.rest.schemas import ScopeReport, ToolList
from mcp_server.api.views import answer_output, tool_output
from mcp_server.errors import ArgumentError, NetworkToolsError
from mcp_server.model.run import RiskName
from mcp_server.observability import tracing
from mcp_server.pipeline.signals import known_name
from mcp_server.scope.reading import MAX_CHARS
from mcp_server.tools.base import MCPBaseTool, ToolOutput
from mcp_server.tools.context import ToolAnswer
from mcp_server.tools.scope_tool import MAX_TARGETS, QueryText, ScopeTool

if TYPE_CHECKING:
    from mcp_server.pipeline.pipeline import Pipeline
    from mcp_server.pipeline.respond import CallResult

T = TypeVar("T")

HOSTS_IN_RESULT: Final = 100
"""Hosts in the answer to a call. ``GET /runs/{run_id}`` has all of them, in pages."""

ToolName = Annotated[str, Path(description="A tool's name, or the name of its class", examples=["nmap"])]
"""The name of a tool in a path."""

_ARGUMENTS: Final[dict[str, Any]] = {
    "description": "The tool's parameters. GET /tools has the schema of each tool.",
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


def add_tool_routes(app: FastAPI, pipeline: Pipeline) -> None:
    """Add ``GET /tools`` and ``POST /tools/{tool_name}/execute``."""

    @app.get(
        "/tools",
        summary="The tools, with their parameters",
        responses=problem_responses(*COMMON_STATUSES) | {200: {"model": ToolList}},
    )
    async def tools(request: Request) -> dict[str, Any]:
        return {
            "tools": [
                describe(tool).model_dump(by_alias=True, mode="json", exclude_none=True)
                | {
                    "class": type(tool).__name__,
                    "command": tool.command_name if isinstance(tool, MCPBaseTool) else None,
                    "flags": sorted(tool.flags()) if isinstance(tool, MCPBaseTool) else [],
                }
                for tool in pipeline.registry_for(rest_actor(request)).tools.values()
            ]
        }

    @app.post(
        "/tools/{tool_name}/execute",
        summary="Run a tool and wait for its result",
        response_model=ToolOutput,
        response_model_exclude_none=True,
        responses=problem_responses(*COMMON_STATUSES, 400, 404, 409, 499, 502, 504, 507),
    )
    async def execute(
        request: Request,
        tool_name: ToolName,
        arguments: Annotated[
            dict[str, Any], Body(json_schema_extra=_ARGUMENTS, examples=[{"target": "127.0.0.1", "ports": "22,80"}])
        ],
    ) -> Any:
        result = await _call(pipeline, request, tool_name, arguments)
        if isinstance(result, ToolAnswer):
            return answer_output(result)
        output = await _tool_output(pipeline, result)
        if result.error is not None:
            return problem_response(result.error, {"result": output.model_dump(mode="json", exclude_none=True)})
        return output


async def _call(
    pipeline: Pipeline, request: Request, tool_name: str, arguments: dict[str, Any]
) -> CallResult | ToolAnswer:
    """Run the tool inside a span of the request."""
    actor = rest_actor(request)
    named = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": known_name(pipeline.registry_for(actor), tool_name),
    }
    with tracing.request("POST", "/tools/{tool_name}/execute", request.headers, **named) as span:
        try:
            result = await _unless_disconnected(request, pipeline.handle(tool_name, arguments, actor))
        except NetworkToolsError as error:
            span.set(**{"http.response.status_code": error.spec.http})
            raise
        if isinstance(result, ToolAnswer):
            span.set(**{"http.response.status_code": 200})
            return result
        span.set(
            **{
                "http.response.status_code": result.error.spec.http if result.error else 200,
                "mcp_network_tools.run_id": result.run.id,
                "mcp_network_tools.outcome": result.run.outcome.value,
            }
        )
        if result.error is not None:
            span.error(result.error.code)
    return result


async def _tool_output(pipeline: Pipeline, result: CallResult) -> ToolOutput:
    if result.digest is None:
        return tool_output(result)
    page = await (await pipeline.open_store()).hosts(result.run.id, limit=HOSTS_IN_RESULT)
    return tool_output(result, list(page.items), page.total)


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``, and cancel it if the client disconnects, because its result would not be read."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.create_task(work), asyncio.create_task(disconnected())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # A server that stops cancels this request. The run must end before the request ends.
        watching.cancel()
        if not working.done():
            working.cancel()
        await asyncio.wait({working, watching})
    if working.cancelled():
        raise NetworkToolsError("The client disconnected.", code="cancelled")
    return working.result()


def add_scope_route(app: FastAPI, pipeline: Pipeline) -> None:
    """Add ``GET /scope``."""

    @app.get(
        "/scope",
        summary="Whether targets are allowed, by which policy entry, and what a call would cost. Without a target: the "
        "policy",
        responses=problem_responses(*COMMON_STATUSES, 404) | {200: {"model": ScopeReport}},
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
        risk: Annotated[RiskName | None, Query(description="Check the targets for this risk")] = None,
        tool: Annotated[QueryText | None, Query(description="Plan a call of this tool, on target")] = None,
        parameters: Annotated[
            str | None,
            Query(
                description="The arguments of that call, without target",
                json_schema_extra={"contentMediaType": "application/json", "contentSchema": {"type": "object"}},
            ),
        ] = None,
    ) -> dict[str, Any]:
        given = {"target": target, "risk": risk, "tool": tool, "parameters": _read_json(parameters)}
        arguments = {key: value for key, value in given.items() if value is not None}
        return (await pipeline.answer(ScopeTool.tool_name(), arguments, rest_actor(request))).body


def _read_json(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        hint = 'Send a JSON object, for example {"ports": "top:100"}.'
        raise ArgumentError("The query parameter 'parameters' is not JSON.", hint=hint) from None
