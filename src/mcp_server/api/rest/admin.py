"""REST routes for operators: reload the configuration, enable and disable tools, open and close circuit breakers.

No route allows more than the operator's files: only a tool that the configuration offers can be enabled. Every action
is written to the audit log before it is carried out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from mcp_server.api.http.callers import rest_actor
from mcp_server.api.http.problems import COMMON_STATUSES, PROBLEM_JSON, problem_body, problem_responses
from mcp_server.api.rest.schemas import AdminTools, BreakerList, ReloadReport, ToolSwitch
from mcp_server.api.rest.tools import ToolName
from mcp_server.errors import ConfigError
from mcp_server.limits.circuit_breaker import BreakerView
from mcp_server.model.run import Actor
from mcp_server.pipeline.log_fields import who
from mcp_server.tools.base import MCPBaseTool

if TYPE_CHECKING:
    from mcp_server.config.reload_result import ReloadResult
    from mcp_server.pipeline.pipeline import Pipeline


def add_admin_routes(app: FastAPI, pipeline: Pipeline, reload: Callable[[Actor], Awaitable[ReloadResult]]) -> None:
    """Add the routes below ``/admin``."""
    _add_reload(app, reload)
    _add_tools(app, pipeline)
    _add_breakers(app, pipeline)


def _add_reload(app: FastAPI, reload: Callable[[Actor], Awaitable[ReloadResult]]) -> None:
    @app.post(
        "/admin/reload",
        summary="Reload the configuration and the policy, completely or not at all",
        response_model=None,
        responses=problem_responses(*COMMON_STATUSES) | {200: {"model": ReloadReport}},
    )
    async def reload_config(request: Request) -> dict[str, Any] | JSONResponse:
        try:
            return (await reload(rest_actor(request))).as_dict()
        except ConfigError as error:
            # At a start this error is a failure of the server. Here it means that a file of the operator is invalid.
            status = HTTPStatus.UNPROCESSABLE_ENTITY
            body = problem_body(error) | {"status": int(status), "title": status.phrase}
            return JSONResponse(body, status_code=status, media_type=PROBLEM_JSON)


def _add_tools(app: FastAPI, pipeline: Pipeline) -> None:
    @app.get(
        "/admin/tools",
        summary="Every tool, and whether it can be called",
        responses=problem_responses(*COMMON_STATUSES) | {200: {"model": AdminTools}},
    )
    async def tools() -> dict[str, Any]:
        registry = pipeline.current.value.registry
        rows = []
        for name, tool in registry.offered.items():
            load = pipeline.admission.load(name)
            rows.append(
                {
                    "name": name,
                    "class": type(tool).__name__,
                    "command": tool.command_name if isinstance(tool, MCPBaseTool) else None,
                    "enabled": name not in registry.disabled,
                    "running": load.running,
                    "waiting": load.waiting,
                }
            )
        left_out = [{"name": item.name, "reason": item.reason} for item in registry.left_out]
        return {"tools": rows, "left_out": left_out}

    @app.post(
        "/admin/tools/{tool_name}/{action}",
        summary="Enable a tool, or refuse further calls of it. Running calls go on",
        responses=problem_responses(*COMMON_STATUSES, 404) | {200: {"model": ToolSwitch}},
    )
    async def switch(request: Request, tool_name: ToolName, action: Literal["enable", "disable"]) -> dict[str, Any]:
        return await switch_tool(pipeline, tool_name, enable=action == "enable", actor=rest_actor(request))


async def switch_tool(pipeline: Pipeline, name: str, *, enable: bool, actor: Actor) -> dict[str, Any]:
    """Enable or disable a tool for every interface of this server. The result says whether that changed anything.

    Raises NotFoundError for a tool that the configuration does not offer, PlatformError if the audit log cannot be
    written.
    """
    registry = pipeline.current.value.registry
    own = registry.find(name).tool_name()
    if (own not in registry.disabled) is enable:
        return {"name": own, "enabled": enable, "changed": False}
    await _log(pipeline, actor, f"tool.{'enable' if enable else 'disable'}", own)
    # Read again: another request or a reload may have changed it while the log was written.
    current = pipeline.current.value
    disabled = current.registry.disabled - {own} if enable else current.registry.disabled | {own}
    pipeline.current.swap(replace(current, registry=current.registry.with_disabled(disabled)))
    pipeline.events.publish(f"tool.{'enabled' if enable else 'disabled'}", {"tool": own, "actor": actor.name})
    return {"name": own, "enabled": enable, "changed": True}


def _add_breakers(app: FastAPI, pipeline: Pipeline) -> None:
    @app.get(
        "/admin/breakers",
        summary="The circuit breaker of every tool that was called",
        responses=problem_responses(*COMMON_STATUSES) | {200: {"model": BreakerList}},
    )
    async def breakers() -> dict[str, Any]:
        return {"breakers": [asdict(view) for view in pipeline.breakers.snapshot()]}

    @app.post(
        "/admin/breakers/{tool_name}/{action}",
        summary="Keep a tool's breaker open or closed, or reset it to closed and automatic",
        responses=problem_responses(*COMMON_STATUSES, 404) | {200: {"model": BreakerView}},
    )
    async def force(request: Request, tool_name: ToolName, action: Literal["open", "close", "reset"]) -> dict[str, Any]:
        # Find the tool first, because an unknown name would create a breaker and a label of its metric.
        name = pipeline.current.value.registry.find(tool_name).tool_name()
        await _log(pipeline, rest_actor(request), f"breaker.{action}", name)
        breaker = pipeline.breakers.of(name)
        {"open": breaker.force_open, "close": breaker.force_close, "reset": breaker.reset}[action]()
        return asdict(breaker.view())


async def _log(pipeline: Pipeline, actor: Actor, action: str, tool: str) -> None:
    await pipeline.audit.append("admin", action=action, tool=tool, **who(actor), **pipeline.terms())
