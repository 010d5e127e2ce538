"""nmap with a higher limit of addresses per call, so that one result can have 2,000 hosts."""

from __future__ import annotations

from mcp_server.tools.nmap_tool import NmapTool


class WideNmapTool(NmapTool):
    """The built-in tool with at most 4,096 addresses."""

    max_addresses = 4096
