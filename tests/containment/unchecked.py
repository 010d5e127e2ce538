"""Tools without any check: the words of a call become the arguments of the program. Only guard and sandbox protect.

This is a package for ``TOOLS_PACKAGE`` that is insecure on purpose. The target of a call is in scope, so that the
pipeline accepts the call, but the program does not get it.
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
    """A target in scope for the pipeline, and the arguments of the program."""

    target: str
    words: Annotated[list[str], Field(max_length=500)]


class RawNmapTool(MCPBaseTool):
    """nmap without checks."""

    command_name = "nmap"
    description = "nmap without checks"
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
    """masscan without checks."""

    command_name = "masscan"


class RawFpingTool(RawNmapTool):
    """fping without checks."""

    command_name = "fping"


class RawPythonTool(RawNmapTool):
    """The system's Python, which can do anything."""

    command_name = "python3.11"
    reads = (SENDER,)


class RawBashTool(RawNmapTool):
    """A shell."""

    command_name = "bash"


TOOLS = {
    tool.command_name: tool.tool_name()
    for tool in (RawNmapTool, RawMasscanTool, RawFpingTool, RawPythonTool, RawBashTool)
}
"""The tool names by program."""
