"""``tools``: lists the tools."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mcp_server.cli.output import Json, print_json, print_table, reporting

if TYPE_CHECKING:
    from mcp_server.tools.registry import RegisteredTool


def tools(as_json: Json = False) -> None:
    """List the tools with their commands, risks and parameters. With --json, also descriptions and flags."""
    from mcp_server.config import get_config
    from mcp_server.server.building import build_registry

    with reporting(as_json=as_json):
        registry = build_registry(get_config())
        if as_json:
            print_json(
                {
                    "tools": [_tool(name, tool) for name, tool in registry.tools.items()],
                    "left_out": [asdict(item) for item in registry.left_out],
                }
            )
            return
        print_table(
            ("TOOL", "COMMAND", "RISK", "PARAMETERS"),
            [
                (name, _command(tool) or "-", str(tool.risk), ", ".join(tool.parameters.model_fields))
                for name, tool in registry.tools.items()
            ],
        )
        for item in registry.left_out:
            print(f"left out: {item.name}: {item.reason}")


def _command(tool: RegisteredTool) -> str | None:
    from mcp_server.tools.base import MCPBaseTool

    return tool.command_name if isinstance(tool, MCPBaseTool) else None


def _tool(name: str, tool: RegisteredTool) -> dict[str, Any]:
    from mcp_server.tools.base import MCPBaseTool

    return {
        "name": name,
        "class": type(tool).__name__,
        "command": _command(tool),
        "title": tool.title,
        "description": tool.description,
        "risk": str(tool.risk),
        "parameters": tool.parameters.model_json_schema(),
        "flags": [flag.usage for _, flag in sorted(tool.flags().items())] if isinstance(tool, MCPBaseTool) else [],
    }
