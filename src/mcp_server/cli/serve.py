"""``serve``: MCP over stdio, or MCP and REST over HTTP, inside the strongest guard that works here."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mcp_server.cli.output import Json, reporting

if TYPE_CHECKING:
    from mcp_server.config import Config
    from mcp_server.execution.guard_choice import Choice


class Transport(StrEnum):
    """The transports that can be served."""

    STDIO = "stdio"
    HTTP = "http"


class GuardTier(StrEnum):
    """The tiers that can be asked for."""

    AUTO = "auto"
    KERNEL = "kernel"
    ROOTLESS = "rootless"
    ARGUMENT = "argument"


def serve(
    transport: Annotated[Transport | None, typer.Option(help="stdio or http; else server.transport.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind (http); else server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind (http), 1-65535; else server.port.")] = None,
    guard: Annotated[
        GuardTier | None,
        typer.Option(help="How the scope is enforced: kernel (as root), rootless, argument; else security.guard."),
    ] = None,
    inside: Annotated[int | None, typer.Option(hidden=True)] = None,
    as_json: Json = False,
) -> None:
    """Serve until the client closes its input (stdio) or a signal asks to stop (http).

    With --json the line that says where the server listens, on standard error, is a JSON document.
    """
    # Standard output may be the wire of MCP: errors go to standard error, as JSON where that was asked for.
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
        from mcp_server.execution.guard import Enforcement
        from mcp_server.execution.guard_choice import choose_guard

        choice = choose_guard(config)
        if choice.enforcement is not Enforcement.ARGUMENT:
            raise typer.Exit(_guard(config, choice, as_json=as_json))
        _configure_logging(config)
        choice.log()
        _run(config, as_json=as_json)


def _configure_logging(config: Config) -> None:
    from mcp_server.config import log_notices
    from mcp_server.logs import configure_logging

    configure_logging(config.logging)
    log_notices(config)


def _run(config: Config, *, as_json: bool, **guarded: Any) -> None:
    import asyncio
    import json

    from mcp_server.server import EnhancedMCPServer

    def ready(url: str) -> None:
        line = json.dumps({"event": "listening", "url": url}) if as_json else f"Listening on {url}"
        print(line, file=sys.stderr, flush=True)

    asyncio.run(EnhancedMCPServer(config, **guarded).serve(ready=ready))


def _serve_inside(config: Config, descriptor: int, *, as_json: bool) -> None:
    """Be the server of the guardian at the other end of ``descriptor``."""
    from mcp_server.execution.guard_client import KernelGuard

    guard = KernelGuard(descriptor)
    _configure_logging(config)
    _run(config, as_json=as_json, guard=guard, listener=guard.listener)


def _guard(config: Config, choice: Choice, *, as_json: bool) -> int:
    """Be the guardian of a server; the exit code of that."""
    import socket

    from mcp_server.config import load_config
    from mcp_server.execution.guard import Enforcement
    from mcp_server.logs import configure_logging

    settings = config.server
    # The log file is the server's, whose user this is not.
    configure_logging(config.logging.model_copy(update={"file_path": None}))
    if choice.reason:
        choice.log()  # that it is up, and which it is, the guardian says itself

    def bind() -> socket.socket:
        from mcp_server.doors.http import listen

        return listen(settings.host, settings.port).sock

    def reload() -> Config:
        return load_config(notify=False)

    command = [sys.executable, "-P", "-m", "mcp_server", "serve", "--transport", settings.transport]
    if settings.transport == "http":
        command += ["--host", settings.host, "--port", str(settings.port)]
    if as_json:
        command.append("--json")
    binding = bind if settings.transport == "http" else None
    if choice.enforcement is Enforcement.ROOTLESS:
        from mcp_server.execution.guard_rootless import enter_rootless

        return enter_rootless(config, command, reload=reload, bind=binding)
    from mcp_server.execution.guard_kernel import KernelGuardian

    return KernelGuardian(config, command, reload=reload, bind=binding).run()
