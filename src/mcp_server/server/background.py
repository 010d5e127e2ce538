"""What goes on beside the calls while a server serves: health checks, figures, spans, and the owner's files."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from mcp_server import __version__, metrics
from mcp_server.api.http.metrics_page import MetricsPage
from mcp_server.netguard import Enforcement
from mcp_server.observability import tracing
from mcp_server.server.reloading import Reloader

if TYPE_CHECKING:
    from mcp_server.api.http.failed_authentications import FailedAuthentications
    from mcp_server.health import HealthCheckManager, SystemHealth
    from mcp_server.identity.authenticator import Authenticator
    from mcp_server.server.enhanced import EnhancedMCPServer

logger = logging.getLogger(__name__)

SETTLE_SEC: Final = 2.0
"""How long a stdio server is left to its client's first calls before it looks after itself."""
FLUSH_SEC: Final = 0.5
"""How long the last spans get to reach their collector when the server stops."""


class BackgroundTasks:
    """Starts and stops it all for one server; ``health`` and ``reloader`` are there before that, for the interfaces."""

    def __init__(self, server: EnhancedMCPServer) -> None:
        self._server = server
        self._guarded = server.guard.enforcement is not Enforcement.ARGUMENT
        self._health: HealthCheckManager | None = None
        self.reloader = Reloader(server, publish=server.pipeline.events.publish)
        self._sampler = metrics.Sampler(lambda: server.config.metrics, server.config.state_dir)
        self._authenticator: Authenticator | None = None
        self._failed_authentications: FailedAuthentications | None = None
        self._page = MetricsPage(lambda: server.config, lambda: self.authenticator, guarded=self._guarded)
        self._later: asyncio.TimerHandle | None = None
        self._going = False

    @property
    def authenticator(self) -> Authenticator:
        """What knows who calls; made when it is first asked for, which over stdio nobody does."""
        if self._authenticator is None:
            from mcp_server.identity.actors import InForce
            from mcp_server.identity.authenticator import Authenticator

            self._authenticator = Authenticator(
                lambda: self._server.config, directory=InForce(lambda: self._server.pipeline.current.value.actors)
            )
        return self._authenticator

    @property
    def failed_authentications(self) -> FailedAuthentications:
        """What puts those who are not let in on the log."""
        if self._failed_authentications is None:
            from mcp_server.api.http.failed_authentications import FailedAuthentications

            self._failed_authentications = FailedAuthentications(
                self._server.pipeline.audit, self._server.pipeline.terms
            )
        return self._failed_authentications

    @property
    def health(self) -> HealthCheckManager:
        """The server's health checks, made when they are first asked for: what they import takes a while."""
        if self._health is None:
            from mcp_server.server.checks import health_of_server

            served = self._server.config.server.transport == "http"
            self._health = health_of_server(self._server.pipeline, self.authenticator if served else None)
            self._health.observe(self._note_health)
        return self._health

    async def prepare(self) -> None:
        """What comes before the first request; raises ConfigError for tracing that is not installed."""
        config, policy = self._server.config, self._server.pipeline.current.value.policy
        self._use_metrics()
        if config.tracing.endpoint:
            await asyncio.to_thread(tracing.configure, config.tracing, inside=policy if self._guarded else None)

    def start(self) -> None:
        """Begin, on the running loop. Over stdio a little later: a client waits for the first answers there."""
        if self._server.config.server.transport == "http":
            self._start()
        else:
            self._later = asyncio.get_running_loop().call_later(SETTLE_SEC, self._start)

    def _start(self) -> None:
        self._going = True
        self.reloader.start()
        self._sampler.start()
        self._show()

    def follow(self) -> None:
        """Go by the configuration that a reload has brought."""
        self._use_metrics()
        if self._going:
            self._show()
        self.invalidate()

    def _use_metrics(self) -> None:
        config, offered = self._server.config, self._server.pipeline.current.value.registry.offered
        metrics.configure(enabled=config.metrics.enabled)
        metrics.prepare(offered)
        tier = self._server.guard.enforcement.value
        metrics.gauge("mcp_server_info", 1.0, version=__version__, enforcement=tier)

    def _show(self) -> None:
        config = self._server.config
        self._page.follow()
        # Over stdio nobody can ask how the server is, unless its figures have a page; the checks open the store.
        if config.server.transport == "http" or config.metrics.is_set("prometheus_port"):
            self.health.start()

    def invalidate(self) -> None:
        """Something failed: what the checks have found is to be looked at again, if anybody has asked them."""
        if self._health is not None:
            self._health.invalidate()

    def parts(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """What has to be stopped, by name; each safe to stop twice, or without a start."""
        self._going = False
        if self._later is not None:
            self._later.cancel()
        health = {} if self._health is None else {"health": self._health.stop}
        failed_authentications = (
            {} if self._failed_authentications is None else {"strangers": self._failed_authentications.close}
        )
        return {
            "reloader": self.reloader.stop,
            **failed_authentications,
            **health,
            "sampler": self._sampler.stop,
            "metrics page": self._page.stop,
            "tracing": lambda: asyncio.to_thread(tracing.shutdown, FLUSH_SEC),
        }

    def _note_health(self, now: SystemHealth, before: SystemHealth | None) -> None:
        from mcp_server.health import gauges, health_change

        for name, value, labels in gauges(now):
            metrics.gauge(name, value, **labels)
        if (told := health_change(before, now)) is not None:
            self._server.pipeline.events.publish("health.changed", told)
