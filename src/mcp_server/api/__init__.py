"""How callers come in: MCP over stdio and HTTP, REST. The command line is `cli`."""
