"""The public import path of what a tool is made of; the code is in `mcp_server.tools.base`."""

from mcp_server.errors import ToolErrorType
from mcp_server.tools.base import (
    Command,
    Estimate,
    MCPBaseTool,
    OutputParser,
    Parsed,
    ToolInput,
    ToolOutput,
    ToolParameters,
    ToolPolicy,
)
from mcp_server.tools.flags import Flag

__all__ = [
    "Command",
    "Estimate",
    "Flag",
    "MCPBaseTool",
    "OutputParser",
    "Parsed",
    "ToolErrorType",
    "ToolInput",
    "ToolOutput",
    "ToolParameters",
    "ToolPolicy",
]
