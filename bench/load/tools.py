"""nmap with a higher concurrency, so that the limit of the tool does not reduce the load on the server."""

from mcp_server.tools.nmap_tool import NmapTool


class ManyTool(NmapTool):
    """The built-in tool with a concurrency of 100."""

    concurrency = 100
