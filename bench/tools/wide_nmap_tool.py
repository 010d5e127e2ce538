"""nmap without the limit of addresses a call, so that one answer can be of 2,000 hosts."""

from __future__ import annotations

from mcp_server.tools.nmap_tool import NmapTool


class WideNmapTool(NmapTool):
    """The built-in tool, for up to 4,096 addresses."""

    max_addresses = 4096
