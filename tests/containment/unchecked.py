"""Tools without any check: the words of a call are the words of the program, and only the guard and sandbox stand.

A site's package (``TOOLS_PACKAGE``), and as bad a one as an owner could install. The target of a call is a pretext that
is in scope, which keeps the rest of the road as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from mcp_server.base_tool import Command, Estimate, MCPBaseTool, RunConditions, ToolParameters
from mcp_server.model.run import Risk
from mcp_server.model.target import Targets
from tests.containment.escapes import SENDER

_RESOLVING = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services", "/etc/protocols")


class RawInput(ToolParameters):
    """A pretext, and the words."""

    target: str
    words: Annotated[list[str], Field(max_length=500)]


class RawNmapTool(MCPBaseTool):
    """nmap as it comes."""

    command_name = "nmap"
    description = "nmap, unchecked"
    concurrency = 32
    parameters = RawInput
    risk = Risk.PROBE
    reads: ClassVar[Sequence[str]] = ("/usr/share/nmap", *_RESOLVING)
    limits_rate = True

    def build_command(self, prepared: Any, targets: Targets, conditions: RunConditions) -> Command:
        """Give the words to the program."""
        return Command(
            args=tuple(prepared.parameters.words),
            estimate=Estimate(addresses=targets.count),
            ok_returncodes=frozenset(range(256)),
            needs_raw_sockets=True,
        )


class RawMasscanTool(RawNmapTool):
    """masscan as it comes."""

    command_name = "masscan"


class RawFpingTool(RawNmapTool):
    """fping as it comes."""

    command_name = "fping"


class RawPythonTool(RawNmapTool):
    """Any program at all: the system's Python."""

    command_name = "python3.11"
    reads = (SENDER,)


class RawBashTool(RawNmapTool):
    """A shell."""

    command_name = "bash"


TOOLS = {
    tool.command_name: tool.tool_name()
    for tool in (RawNmapTool, RawMasscanTool, RawFpingTool, RawPythonTool, RawBashTool)
}
"""Program to tool."""
