"""Tasks that run beside the calls: health checks, metrics, tracing, and watching the operator's files."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from mcp_server import __version__, metrics
from mcp_server.metrics.sampler import Sampler
from mcp_server.netguard import Enforcement
from mcp_server.observability import tracing
from mcp_server.server.lazy import Lazy

if TYPE_CHECKING:
    from mcp_server.api.http.metrics_page import MetricsPage
    from mcp_server.config import Config
    from mcp_server.health import HealthCheckManager
    from mcp_server.identity.authenticator import Authenticator
    from mcp_server.pipeline.current import Current
    from mcp_server.server.lifecycle import Lifecycle
    from mcp_server.server.reloading import Reloader

STDIO_DELAY_SEC: Final = 2.0
"""Seconds until the tasks start over stdio, because the client waits for its first answers."""
FLUSH_SEC: Final = 0.5
"""Seconds for the last spans to reach their collector when the server stops."""


class BackgroundTasks:
    """Starts and stops the tasks of one server."""

    def __init__(
        self,
        current: Current,
        enforcement: Enforcement,
        reloader: Reloader,
        health: Lazy[HealthCheckManager],
        authenticator: Lazy[Authenticator],
        lifecycle: Lifecycle,
    ) -> None:
        self._current = current
        self._enforcement = enforcement
        self._reloader = reloader
        self._health = health
        self._authenticator = authenticator
        self._lifecycle = lifecycle
        self._sampler = Sampler(lambda: current.value.config.metrics, current.value.config.state_dir)
        self._page = Lazy(self._make_page)
        self._delayed: asyncio.TimerHandle | None = None
        self._started = False
        current.observe(self._on_reload)

    async def prepare(self) -> None:
        """Set up metrics and tracing before the first request.

        Raises ConfigError if tracing is configured but not installed.
        """
        self._configure_metrics()
        current = self._current.value
        if current.config.tracing.endpoint:
            inside = current.policy if self._guarded else None
            await asyncio.to_thread(tracing.configure, current.config.tracing, inside=inside)

    def start(self) -> None:
        """Start the tasks on the running loop, over stdio after `STDIO_DELAY_SEC`."""
        if self._current.value.config.server.transport == "http":
            self._start()
        else:
            self._delayed = asyncio.get_running_loop().call_later(STDIO_DELAY_SEC, self._start)

    def parts(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Return a function that stops each task, by name. It can be called twice, or without a start."""
        self._started = False
        if self._delayed is not None:
            self._delayed.cancel()
        health, page = self._health.made, self._page.made
        return {
            "reloader": self._reloader.stop,
            **({} if health is None else {"health": health.stop}),
            "sampler": self._sampler.stop,
            **({} if page is None else {"metrics page": page.stop}),
            "tracing": lambda: asyncio.to_thread(tracing.shutdown, FLUSH_SEC),
        }

    @property
    def _guarded(self) -> bool:
        return self._enforcement is not Enforcement.ARGUMENT

    def _start(self) -> None:
        self._started = True
        self._reloader.start()
        self._sampler.start()
        self._start_configured()

    def _on_reload(self) -> None:
        self._configure_metrics()
        if self._started:
            self._start_configured()

    def _configure_metrics(self) -> None:
        current = self._current.value
        metrics.configure(enabled=_serves_metrics(current.config))
        metrics.prepare(current.registry.offered)
        metrics.gauge("mcp_server_info", 1.0, version=__version__, enforcement=self._enforcement.value)
        metrics.gauge("mcp_server_ready", float(self._lifecycle.ready))

    def _start_configured(self) -> None:
        """Start the tasks that only some configurations need."""
        config = self._current.value.config
        has_page = config.metrics.is_set("prometheus_port")
        if has_page or self._page.made is not None:
            self._page().follow()
        # Over stdio, health is visible only on the metrics page. The checks open the store.
        if config.server.transport == "http" or has_page:
            self._health().start()

    def _make_page(self) -> MetricsPage:
        from mcp_server.api.http.metrics_page import MetricsPage

        return MetricsPage(lambda: self._current.value.config, self._authenticator, guarded=self._guarded)


def _serves_metrics(config: Config) -> bool:
    """Return whether a client can read the metrics of this server. If not, no metrics are counted."""
    settings = config.metrics
    has_page = config.server.transport == "http" or settings.is_set("prometheus_port")
    return settings.enabled and settings.prometheus_enabled and has_page
