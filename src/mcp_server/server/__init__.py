"""The server: `EnhancedMCPServer` builds the services, starts and stops them, and reloads the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcp_server.server.enhanced import EnhancedMCPServer

__all__ = ["EnhancedMCPServer"]


def __getattr__(name: str) -> Any:
    """Import the server class at its first use, because the command line needs only single modules of this package."""
    if name == "EnhancedMCPServer":
        from mcp_server.server.enhanced import EnhancedMCPServer

        return EnhancedMCPServer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
