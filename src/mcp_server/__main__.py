"""``python -m mcp_server`` is the command line."""

from mcp_server.cli import main

main()
