"""``serve``: MCP over stdio, or MCP and REST over HTTP."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from mcp_server.cli.output import Json, reporting


class Transport(StrEnum):
    """The transports that can be served."""

    STDIO = "stdio"
    HTTP = "http"


def serve(
    transport: Annotated[Transport | None, typer.Option(help="stdio or http; else server.transport.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind (http); else server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind (http), 1-65535; else server.port.")] = None,
    as_json: Json = False,
) -> None:
    """Serve until the client closes its input (stdio) or a signal asks to stop (http).

    With --json the line that says where the server listens, on standard error, is a JSON document.
    """
    import asyncio
    import json

    from mcp_server.config import get_config, log_notices
    from mcp_server.logs import configure_logging
    from mcp_server.server import EnhancedMCPServer

    def ready(url: str) -> None:
        line = json.dumps({"event": "listening", "url": url}) if as_json else f"Listening on {url}"
        print(line, file=sys.stderr, flush=True)

    # Standard output may be the wire of MCP: errors go to standard error, as JSON where that was asked for.
    with reporting(as_json=as_json, stream=sys.stderr):
        config = get_config(notify=False)
        wanted: dict[str, Any] = {"transport": transport and transport.value, "host": host, "port": port}
        for key, value in wanted.items():
            if value is not None:
                setattr(config.server, key, value)
        configure_logging(config.logging)
        log_notices(config)
        asyncio.run(EnhancedMCPServer(config).serve(ready=ready))
