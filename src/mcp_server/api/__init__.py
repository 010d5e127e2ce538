"""The interfaces of the server: MCP over stdio and HTTP, and REST. The command line is in `cli`."""
