"""``doctor``: checks whether this host has everything that a server needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from mcp_server.cli.output import Json, print_json, reporting, run_async
from mcp_server.errors import ExitCode

if TYPE_CHECKING:
    from mcp_server.config import Config
    from mcp_server.health import SystemHealth
    from mcp_server.store.base import Store


def doctor(as_json: Json = False) -> None:
    """Check this host: what is missing, what still works without it, and how to fix it."""
    from mcp_server.config import get_config
    from mcp_server.health import HealthStatus

    with reporting(as_json=as_json):
        health = run_async(_check(get_config()))
        if as_json:
            print_json({"state": health.status.word, "checks": health.as_dict()["checks"]})
        else:
            for result in health.results:
                print(f"{result.status.word:9} {result.name}: {result.detail}")
                if result.works:
                    print(f"{'':9} still works: {result.works}")
                if result.remedy:
                    print(f"{'':9} to fix: {result.remedy}")
        if health.status is HealthStatus.UNHEALTHY:
            raise typer.Exit(ExitCode.ENVIRONMENT)


async def _check(config: Config) -> SystemHealth:
    from mcp_server.audit import AuditLog
    from mcp_server.errors import NetworkToolsError
    from mcp_server.server import EnhancedMCPServer
    from mcp_server.server.building import build_registry
    from mcp_server.server.checks import health_of_host

    # Built first, because that creates the state folder. If it cannot be created, a check reports that.
    server: EnhancedMCPServer | NetworkToolsError
    try:
        server = EnhancedMCPServer(config)
    except NetworkToolsError as error:
        server = error

    async def open_store() -> Store:
        if isinstance(server, NetworkToolsError):
            raise server
        return await server.pipeline.open_store()

    audit = AuditLog(config.state_dir, lambda: config.audit)
    manager = health_of_host(config, build_registry(config), open_store, audit)
    try:
        return await manager.check()
    finally:
        await manager.stop()
        if isinstance(server, EnhancedMCPServer):
            await server.cleanup()
