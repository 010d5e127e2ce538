"""nmap as it is, but for how often at once: the load is the server's to bear, not the tool's own bound's."""

from mcp_server.tools.nmap_tool import NmapTool


class ManyTool(NmapTool):
    """As many at once as the server lets."""

    concurrency = 100
