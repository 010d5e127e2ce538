"""MCP: tools and resources over stdio and HTTP."""
