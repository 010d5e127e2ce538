"""What the REST interface uses of a server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcp_server.config.reload_result import ReloadResult
    from mcp_server.health import HealthCheckManager
    from mcp_server.model.run import Actor
    from mcp_server.pipeline.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class RestServices:
    """The pipeline, and functions that return or do what a route needs besides."""

    pipeline: Pipeline
    health: Callable[[], HealthCheckManager]
    ready: Callable[[], bool]
    """Whether calls are taken."""
    reload: Callable[[Actor], Awaitable[ReloadResult]]
    """Reads the configuration again, on request of the actor."""
    last_reload: Callable[[], ReloadResult | None]
