"""The public names for tools. They are defined in `mcp_server.tools.base` and `mcp_server.tools.flags`."""

from mcp_server.errors import ToolErrorType
from mcp_server.tools.base import (
    Command,
    Estimate,
    MCPBaseTool,
    PreparedParameters,
    RunConditions,
    ServerTool,
    ToolInput,
    ToolOutput,
    ToolParameters,
    ToolPolicy,
)
from mcp_server.tools.context import ToolAnswer, ToolContext
from mcp_server.tools.flags import Flag
from mcp_server.tools.results import OutputParser, Parsed

__all__ = [
    "Command",
    "Estimate",
    "Flag",
    "MCPBaseTool",
    "OutputParser",
    "Parsed",
    "PreparedParameters",
    "RunConditions",
    "ServerTool",
    "ToolAnswer",
    "ToolContext",
    "ToolErrorType",
    "ToolInput",
    "ToolOutput",
    "ToolParameters",
    "ToolPolicy",
]
