"""``python -m mcp_server.server`` serves over the configured transport, as ``mcp-network-tools serve`` does."""

import sys

from mcp_server.server.enhanced import main

sys.exit(main())
