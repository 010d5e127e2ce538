"""The floor of a cold start: the smallest server that the same SDK can make, with one tool."""

from __future__ import annotations

from mcp.server.mcpserver import MCPServer

server = MCPServer("floor")


@server.tool()
def echo(text: str) -> str:
    """Return the text."""
    return text


if __name__ == "__main__":
    server.run("stdio")
