"""The health checks of this project, for ``doctor``, ``/health`` and the metrics.

Each outcome says what is missing, what still works without it, and how to repair it. `health_of_host` is for a host on
which no server runs yet, `health_of_server` for a running server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcp_server import metrics
from mcp_server.health import HealthCheckManager, HealthCheckPriority, Threaded, gauges, health_change, log_changes
from mcp_server.server.checks import host, load, service
from mcp_server.server.checks.callers import ActorsCheck, check_identity

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mcp_server.audit import AuditLog
    from mcp_server.config import Config
    from mcp_server.health import CheckOutcome, SystemHealth
    from mcp_server.identity.authenticator import Authenticator
    from mcp_server.limits.rate_limit import RateLimiter
    from mcp_server.pipeline.pipeline import Pipeline
    from mcp_server.store.base import Store
    from mcp_server.tools.registry import ToolRegistry

__all__ = ["health_of_host", "health_of_server"]

_CRITICAL, _IMPORTANT, _INFORMATIONAL = HealthCheckPriority


def health_of_server(
    pipeline: Pipeline, limiter: RateLimiter, authenticator: Authenticator | None
) -> HealthCheckManager:
    """Return the checks of a running server. Every round uses the configuration in force.

    ``authenticator`` belongs to the HTTP interfaces, and is None without them. Each round is logged, counted and
    published.
    """
    current = pipeline.current
    manager = HealthCheckManager(lambda: current.value.config.health)
    manager.observe(log_changes)

    def publish(now: SystemHealth, before: SystemHealth | None) -> None:
        for name, value, labels in gauges(now):
            metrics.gauge(name, value, **labels)
        if (change := health_change(before, now)) is not None:
            pipeline.events.publish("health.changed", change)

    manager.observe(publish)

    async def guard() -> CheckOutcome:
        return await service.check_guard(current.value.config, pipeline.guard)

    async def engine() -> CheckOutcome:
        return await service.check_engine(pipeline.guard)

    async def breakers() -> CheckOutcome:
        return load.check_breakers(pipeline.breakers.snapshot())

    async def queue() -> CheckOutcome:
        return load.check_queue(pipeline.admission.snapshot(), current.value.config.admission.max_waiting)

    async def rate_limit() -> CheckOutcome:
        return load.check_rate_limit(await limiter.check())

    _register_service(
        manager,
        lambda: current.value.config,
        lambda: current.value.registry,
        pipeline.open_store,
        pipeline.audit,
        guard,
        allow_raw=pipeline.guard.raw_sockets,
        serving=True,
    )
    manager.register("engine", _CRITICAL, engine)
    manager.register("process", _IMPORTANT, host.ProcessCheck(manager.lag))
    manager.register("breakers", _IMPORTANT, breakers)
    manager.register("queue", _IMPORTANT, queue)
    manager.register("rate limit", _IMPORTANT, rate_limit)
    if authenticator is not None and current.value.config.server.auth == "token":
        manager.register("identity", _IMPORTANT, lambda: check_identity(current.value.config, authenticator))
    _register_dependencies(manager, lambda: current.value.config)
    return manager


def health_of_host(
    config: Config, registry: ToolRegistry, open_store: Callable[[], Awaitable[Store]], audit: AuditLog
) -> HealthCheckManager:
    """Return the checks of a host for a process that runs no server. Chooses a guard, which may fork."""
    from mcp_server.netguard.choice import choose_guard

    manager = HealthCheckManager(lambda: config.health)
    chosen = service.check_choice(config, choose_guard)  # now, because this process must have one thread

    async def guard() -> CheckOutcome:
        return chosen

    _register_service(
        manager, lambda: config, lambda: registry, open_store, audit, guard, allow_raw=False, serving=False
    )
    if config.server.auth == "token" and (config.server.transport == "http" or config.auth.issuer):
        from mcp_server.identity.authenticator import Authenticator

        authenticator = Authenticator(lambda: config)
        manager.register("identity", _IMPORTANT, lambda: check_identity(config, authenticator))
    _register_dependencies(manager, lambda: config)
    return manager


def _register_service(
    manager: HealthCheckManager,
    config: Callable[[], Config],
    registry: Callable[[], ToolRegistry],
    open_store: Callable[[], Awaitable[Store]],
    audit: AuditLog,
    guard: Callable[[], Awaitable[CheckOutcome]],
    *,
    allow_raw: bool,
    serving: bool,
) -> None:
    """Register the checks that a server and a host have in common. Blocking checks run in threads."""
    scope, actors = service.ScopeCheck(serving=serving), ActorsCheck(serving=serving)
    cpu, stored = host.CpuCheck(), service.StoreCheck(open_store)

    async def store() -> CheckOutcome:
        return await stored(config())

    manager.register("tools", _INFORMATIONAL, Threaded(lambda: service.check_tools(registry())))
    manager.register("guard", _CRITICAL, guard)
    manager.register("processes", _CRITICAL, Threaded(lambda: service.check_processes(allow_raw=allow_raw)))
    manager.register("state folder", _CRITICAL, Threaded(lambda: service.check_state_folder(config().state_dir)))
    manager.register(
        "disk", _CRITICAL, Threaded(lambda: service.check_disk(config().state_dir, config().health.disk_threshold))
    )
    manager.register("store", _CRITICAL, store)
    manager.register("audit log", _CRITICAL, Threaded(lambda: service.check_audit(audit)))
    manager.register("scope", _CRITICAL, Threaded(lambda: [scope(config()), *actors(config())]))
    manager.register("cpu", _CRITICAL, Threaded(lambda: cpu(config().health.cpu_threshold)))
    manager.register("memory", _CRITICAL, Threaded(lambda: host.check_memory(config().health.memory_threshold)))


def _register_dependencies(manager: HealthCheckManager, config: Callable[[], Config]) -> None:
    manager.register(
        "dependencies", _INFORMATIONAL, Threaded(lambda: load.check_dependencies(config().health.dependencies))
    )
