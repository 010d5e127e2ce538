"""The parts of a server that the REST interface uses."""

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
    """The pipeline, and the functions that the routes call."""

    pipeline: Pipeline
    health: Callable[[], HealthCheckManager]
    ready: Callable[[], bool]
    """Whether the server accepts calls."""
    reload: Callable[[Actor], Awaitable[ReloadResult]]
    """Reads the configuration again, on request of the actor."""
    last_reload: Callable[[], ReloadResult | None]
