"""``serve``: serves MCP over stdio, or MCP and REST over HTTP, inside the strongest guard that works here."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mcp_server.cli.output import Json, reporting

if TYPE_CHECKING:
    from mcp_server.config import Config
    from mcp_server.netguard.choice import GuardChoice


class Transport(StrEnum):
    """The transports that can be served."""

    STDIO = "stdio"
    HTTP = "http"


class GuardTier(StrEnum):
    """The values of ``--guard``."""

    AUTO = "auto"
    KERNEL = "kernel"
    ROOTLESS = "rootless"
    ARGUMENT = "argument"


def serve(
    transport: Annotated[Transport | None, typer.Option(help="stdio or http. Default: server.transport.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind (http). Default: server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind (http), 1-65535. Default: server.port.")] = None,
    guard: Annotated[
        GuardTier | None,
        typer.Option(
            help="How the scope is enforced: kernel (needs root), rootless, argument or auto. Default: security.guard."
        ),
    ] = None,
    inside: Annotated[int | None, typer.Option(hidden=True)] = None,
    as_json: Json = False,
) -> None:
    """Serve until the client closes standard input (stdio) or a signal asks to stop.

    With --json, the line on standard error that names the address is a JSON document.
    """
    # SIGHUP asks for a reload. Until the server handles it, its default action would end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Standard output may carry MCP messages, so errors go to standard error, with --json as JSON.
    with reporting(as_json=as_json, stream=sys.stderr):
        from mcp_server.config import get_config

        config = get_config(notify=False)
        wanted: dict[str, Any] = {"transport": transport and transport.value, "host": host, "port": port}
        for key, value in wanted.items():
            if value is not None:
                setattr(config.server, key, value)
        if guard is not None:
            config.security.guard = guard.value
        if inside is not None:
            _serve_inside(config, inside, as_json=as_json)
            return
        from mcp_server.netguard import Enforcement
        from mcp_server.netguard.choice import choose_guard

        choice = choose_guard(config)
        if choice.enforcement is not Enforcement.ARGUMENT:
            raise typer.Exit(_guard(config, choice, as_json=as_json))
        _configure_logging(config)
        _run(config, choice, as_json=as_json)


def _configure_logging(config: Config) -> None:
    from mcp_server.config import log_notices
    from mcp_server.observability.logs import configure_logging

    configure_logging(config.logging)
    log_notices(config)


def _run(config: Config, choice: GuardChoice | None, *, as_json: bool, **guarded: Any) -> None:
    import asyncio
    import json

    from mcp_server.server import EnhancedMCPServer

    def ready(url: str) -> None:
        if choice is not None:
            choice.log()
        line = json.dumps({"event": "listening", "url": url}) if as_json else f"Listening on {url}"
        print(line, file=sys.stderr, flush=True)

    server = EnhancedMCPServer(config, **guarded)
    if choice is not None and config.server.transport == "stdio":
        choice.log()
    asyncio.run(server.serve(ready=ready))


def _serve_inside(config: Config, descriptor: int, *, as_json: bool) -> None:
    """Run the server inside the guard whose helper is at the other end of ``descriptor``."""
    from mcp_server.netguard.client import PacketGuard

    guard = PacketGuard(descriptor)
    _configure_logging(config)
    _run(config, None, as_json=as_json, guard=guard, listener=guard.listener)


def _guard(config: Config, choice: GuardChoice, *, as_json: bool) -> int:
    """Run the server inside a guard, with this process as the guard helper. Returns the exit code of the server."""
    import socket

    from mcp_server.cli.guard import run_guarded

    settings = config.server
    words = ["serve", "--transport", settings.transport, *(["--json"] if as_json else [])]
    if settings.transport == "stdio":
        return run_guarded(config, choice, words)

    def bind() -> socket.socket:
        from mcp_server.api.http.connections import listen

        return listen(settings.host, settings.port).sock

    words += ["--host", settings.host, "--port", str(settings.port)]
    return run_guarded(config, choice, words, bind=bind)
