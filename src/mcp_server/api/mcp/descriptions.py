"""How tools are described to MCP clients. The REST interface uses the same descriptions."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import mcp_types as types

from mcp_server.api import views
from mcp_server.model.run import Risk
from mcp_server.tools.base import ServerTool
from mcp_server.tools.registry import RegisteredTool

_described: WeakKeyDictionary[RegisteredTool, types.Tool] = WeakKeyDictionary()
"""Over HTTP the SDK asks for the list at every call, and pydantic needs milliseconds to make a schema."""


def describe(tool: RegisteredTool) -> types.Tool:
    """The `tools/list` entry of a tool, without the titles that pydantic repeats for every property."""
    if (known := _described.get(tool)) is not None:
        return known
    if isinstance(tool, ServerTool):
        description, output_schema = tool.description, tool.output_schema
    else:
        description = tool.description or f"Runs {tool.command_name} on one target inside the scope."
        output_schema = views.output_schema(tool.result_fields)
    entry = _described[tool] = types.Tool(
        name=tool.tool_name(),
        title=tool.title or tool.tool_name(),
        description=description,
        input_schema=compact_schema(tool.parameters.model_json_schema()),
        output_schema=output_schema,
        annotations=types.ToolAnnotations(
            read_only_hint=tool.risk < Risk.INTRUSIVE,
            destructive_hint=tool.risk >= Risk.INTRUSIVE,
            idempotent_hint=tool.risk < Risk.INTRUSIVE,
            open_world_hint=True,
        ),
    )
    return entry


def compact_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema without parts that only cost tokens: generated titles, null branches and null defaults."""
    return {key: value for key, value in _compact(schema).items() if key != "description"}


def _compact(node: Any) -> Any:
    if isinstance(node, list):
        return [_compact(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: value for key, value in node.items() if not (key == "title" and isinstance(value, str))}
    branches = [branch for branch in node.get("anyOf", ()) if branch != {"type": "null"}]
    if len(branches) == 1:
        node = {key: value for key, value in node.items() if key != "anyOf"} | branches[0]
    elif branches:
        node["anyOf"] = branches
    if "default" in node and node["default"] is None:
        del node["default"]
    return {key: _compact(value) for key, value in node.items()}
