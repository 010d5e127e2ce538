"""What an operator does while the server runs: reload, switch tools off and on, open and close breakers.

Nothing here widens what the owner's files allow: a tool that is switched on again is one they offer. Every act is on
the audit log before it is done.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import FastAPI, Path, Request
from fastapi.responses import JSONResponse

from mcp_server.api.http.principals import caller
from mcp_server.api.http.problems import GUARDED, PROBLEM_JSON, problem_body, problem_responses
from mcp_server.api.rest.schemas import AdminTools, BreakerList, ReloadReport, Switched
from mcp_server.errors import ConfigError
from mcp_server.limits.circuit_breaker import BreakerView
from mcp_server.model.run import Actor
from mcp_server.pipeline.log_fields import who
from mcp_server.tools.base import MCPBaseTool

if TYPE_CHECKING:
    from mcp_server.server.enhanced import EnhancedMCPServer

ToolName = Annotated[str, Path(description="A tool's name, or the name of its class", examples=["nmap"])]
"""The name of a tool in a path."""


def add_admin_routes(app: FastAPI, server: EnhancedMCPServer) -> None:
    """Add ``/admin`` to the REST application."""
    _add_reload(app, server)
    _add_tools(app, server)
    _add_breakers(app, server)


def _add_reload(app: FastAPI, server: EnhancedMCPServer) -> None:
    @app.post(
        "/admin/reload",
        summary="Read the configuration and the policy again, and use them whole or keep the old",
        response_model=None,
        responses=problem_responses(*GUARDED) | {200: {"model": ReloadReport}},
    )
    async def reload(request: Request) -> dict[str, Any] | JSONResponse:
        try:
            return (await server.reloader.reload_for(caller(request))).as_dict()
        except ConfigError as error:
            # At the start this is the server's failure; here it is what the owner's file says that cannot be used.
            status = HTTPStatus.UNPROCESSABLE_ENTITY
            body = problem_body(error) | {"status": int(status), "title": status.phrase}
            return JSONResponse(body, status_code=status, media_type=PROBLEM_JSON)


def _add_tools(app: FastAPI, server: EnhancedMCPServer) -> None:
    @app.get(
        "/admin/tools",
        summary="Every tool, and whether it may be called",
        responses=problem_responses(*GUARDED) | {200: {"model": AdminTools}},
    )
    async def tools() -> dict[str, Any]:
        registry, admission = server.pipeline.current.value.registry, server.pipeline.admission
        rows = []
        for name, tool in registry.offered.items():
            load = admission.load(name)
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
        summary="Let a tool be called again, or refuse further calls of it; running calls go on",
        responses=problem_responses(*GUARDED, 404) | {200: {"model": Switched}},
    )
    async def switch(request: Request, tool_name: ToolName, action: Literal["enable", "disable"]) -> dict[str, Any]:
        return await switch_tool(server, tool_name, enable=action == "enable", actor=caller(request))


async def switch_tool(server: EnhancedMCPServer, name: str, *, enable: bool, actor: Actor) -> dict[str, Any]:
    """Switch a tool on or off for every interface of this server; says whether that changed anything.

    Raises NotFoundError for a tool that the owner's files do not offer, PlatformError where the log cannot be written.
    """
    pipeline = server.pipeline
    registry = pipeline.current.value.registry
    own = registry.find(name).tool_name()
    if (own not in registry.disabled) is enable:
        return {"name": own, "enabled": enable, "changed": False}
    await _note(server, actor, f"tool.{'enable' if enable else 'disable'}", own)
    # Only now, and in one step: another request, or a reload, may have been here during the writing.
    current = pipeline.current.value
    disabled = current.registry.disabled - {own} if enable else current.registry.disabled | {own}
    pipeline.current.swap(replace(current, registry=current.registry.with_disabled(disabled)))
    pipeline.events.publish(f"tool.{'enabled' if enable else 'disabled'}", {"tool": own, "actor": actor.name})
    return {"name": own, "enabled": enable, "changed": True}


def _add_breakers(app: FastAPI, server: EnhancedMCPServer) -> None:
    @app.get(
        "/admin/breakers",
        summary="The circuit breaker of every tool that was called",
        responses=problem_responses(*GUARDED) | {200: {"model": BreakerList}},
    )
    async def breakers() -> dict[str, Any]:
        return {"breakers": [asdict(view) for view in server.pipeline.breakers.snapshot()]}

    @app.post(
        "/admin/breakers/{tool_name}/{action}",
        summary="Hold a tool's breaker open or closed, or leave it to itself again, closed (reset)",
        responses=problem_responses(*GUARDED, 404) | {200: {"model": BreakerView}},
    )
    async def force(request: Request, tool_name: ToolName, action: Literal["open", "close", "reset"]) -> dict[str, Any]:
        # A name that no tool has would make a breaker of its own, and be a label of the figures.
        name = server.pipeline.current.value.registry.find(tool_name).tool_name()
        await _note(server, caller(request), f"breaker.{action}", name)
        breaker = server.pipeline.breakers.of(name)
        {"open": breaker.force_open, "close": breaker.force_close, "reset": breaker.reset}[action]()
        return asdict(breaker.view())


async def _note(server: EnhancedMCPServer, actor: Actor, action: str, tool: str) -> None:
    pipeline = server.pipeline
    await pipeline.audit.append("admin", action=action, tool=tool, **who(actor), **pipeline.terms())
