"""The parts of a server, and the function that builds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcp_server.api.rest.services import RestServices
from mcp_server.audit import AuditLog
from mcp_server.limits.admission import Admission
from mcp_server.limits.calls import Calls
from mcp_server.limits.circuit_breaker import Breakers
from mcp_server.limits.rate_limit import RateLimiter
from mcp_server.observability.events import EventBus
from mcp_server.pipeline.current import Current, Snapshot
from mcp_server.pipeline.pipeline import Pipeline
from mcp_server.pipeline.signals import BreakerSignals, show_breakers
from mcp_server.server.background import BackgroundTasks
from mcp_server.server.building import caps
from mcp_server.server.lazy import Lazy
from mcp_server.server.lifecycle import Lifecycle, Phase
from mcp_server.server.reloading import Reloader
from mcp_server.server.store_holder import StoreHolder

if TYPE_CHECKING:
    from mcp_server.api.http.failed_authentications import FailedAuthentications
    from mcp_server.health import HealthCheckManager
    from mcp_server.identity.authenticator import Authenticator
    from mcp_server.netguard import Guard


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one server. Interfaces and background tasks get only the parts that they use."""

    pipeline: Pipeline
    lifecycle: Lifecycle
    reloader: Reloader
    background: BackgroundTasks
    store: StoreHolder
    limiter: RateLimiter
    health: Lazy[HealthCheckManager]
    authenticator: Lazy[Authenticator]
    """Checks credentials. A server over stdio makes it for its metrics page only."""
    failed_authentications: Lazy[FailedAuthentications]


def build_services(snapshot: Snapshot, guard: Guard, on_phase: Callable[[Phase], None]) -> Services:
    """Build the parts of a server. ``on_phase`` is called with every new phase of its lifecycle."""
    current, events, calls = Current(snapshot), EventBus(), Calls()
    audit = AuditLog(snapshot.config.state_dir, lambda: current.value.config.audit)
    store = StoreHolder(snapshot.config, audit)
    admission = Admission(caps(current))
    breakers = Breakers(lambda: current.value.config.circuit_breaker, observer=BreakerSignals())
    limiter = RateLimiter(lambda: current.value.config.rate_limit)

    def make_authenticator() -> Authenticator:
        from mcp_server.identity.actors import CurrentDirectory
        from mcp_server.identity.authenticator import Authenticator

        return Authenticator(lambda: current.value.config, CurrentDirectory(lambda: current.value.actors))

    def make_failed_authentications() -> FailedAuthentications:
        from mcp_server.api.http.failed_authentications import FailedAuthentications

        return FailedAuthentications(audit, pipeline.terms)

    def make_health() -> HealthCheckManager:
        from mcp_server.server.checks import health_of_server

        served = snapshot.config.server.transport == "http"
        return health_of_server(pipeline, limiter, authenticator() if served else None)

    def invalidate_health() -> None:
        if (manager := health.made) is not None:
            manager.invalidate()

    authenticator, health = Lazy(make_authenticator), Lazy(make_health)
    pipeline = Pipeline(
        current,
        guard=guard,
        audit=audit,
        open_store=store.open,
        admission=admission,
        breakers=breakers,
        limiter=limiter,
        calls=calls,
        events=events,
        invalidate=invalidate_health,
    )
    lifecycle = Lifecycle(calls, on_phase)
    reloader = Reloader(pipeline)
    current.observe(admission.refresh)
    current.observe(invalidate_health)
    show_breakers(breakers)
    return Services(
        pipeline=pipeline,
        lifecycle=lifecycle,
        reloader=reloader,
        background=BackgroundTasks(current, guard.enforcement, reloader, health, authenticator, lifecycle),
        store=store,
        limiter=limiter,
        health=health,
        authenticator=authenticator,
        failed_authentications=Lazy(make_failed_authentications),
    )


def rest_services(services: Services) -> RestServices:
    """Return the parts that the REST interface uses."""
    return RestServices(
        pipeline=services.pipeline,
        health=services.health,
        ready=lambda: services.lifecycle.ready,
        reload=services.reloader.reload_for,
        last_reload=lambda: services.reloader.last,
    )
