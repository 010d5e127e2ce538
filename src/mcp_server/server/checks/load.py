"""Checks of circuit breakers, queues and the rate limiter, and of the modules that the operator names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mcp_server.health import Finding, HealthStatus
from mcp_server.model.untrusted import sanitize

if TYPE_CHECKING:
    from mcp_server.limits.admission import Load
    from mcp_server.limits.circuit_breaker import BreakerView

_OK, _DEGRADED = HealthStatus.HEALTHY, HealthStatus.DEGRADED


def check_breakers(breakers: Sequence[BreakerView]) -> Finding:
    """Which tools are refused because they failed too often."""
    not_closed = [breaker for breaker in breakers if breaker.state.value != "closed"]
    if not not_closed:
        return Finding(_OK, f"{len(breakers)} closed" if breakers else "no tool was called yet")
    detail = "; ".join(map(_describe, not_closed))
    remedy = "find out why their last runs failed: mcp-network-tools runs list"
    return Finding(_DEGRADED, detail, "every other tool; stored runs can be read", remedy)


def _describe(breaker: BreakerView) -> str:
    state = breaker.state.value.replace("_", "-")
    if breaker.forced:
        return f"{breaker.name} is held {state} by an operator"
    later = f", next trial in {breaker.retry_after} s" if breaker.retry_after else ""
    return f"{breaker.name} is {state}{later}"


def check_queue(loads: Mapping[str, Load], most: int) -> Finding:
    """How many calls run and wait, and which queues are full. ``most`` is ``admission.max_waiting``."""
    running, waiting = sum(load.running for load in loads.values()), sum(load.waiting for load in loads.values())
    detail = f"{running} running, {waiting} waiting"
    full = [tool for tool, load in loads.items() if most and load.waiting >= most]
    if full:
        detail += f"; the queue is full ({most} calls) for {', '.join(full)}"
        return Finding(_DEGRADED, detail, "calls of other tools", "wait, or raise the limits of the section admission")
    return Finding(_OK, detail)


def check_rate_limit(problem: str | None) -> Finding:
    """Whether calls are counted in the configured storage. ``problem`` is what the rate limiter reports."""
    if problem is None:
        return Finding(_OK, "calls are counted")
    return Finding(_DEGRADED, problem, "everything; each server counts its own calls", "check rate_limit.storage_url")


def check_dependencies(names: Sequence[str]) -> list[Finding]:
    """Whether the Python modules that the operator names can be imported. It imports them."""
    missing = [(name, reason) for name in names if (reason := _not_importable(name))]
    if not missing:
        return [Finding(_OK, f"{len(names)} configured, all can be imported" if names else "none configured")]
    remedy = "install the module in the environment of this server, or correct health.dependencies"
    return [
        Finding(
            HealthStatus.UNHEALTHY, reason, "everything that does not need this module", remedy, f"dependency {name}"
        )
        for name, reason in missing
    ]


def _not_importable(name: str) -> str:
    importlib.invalidate_caches()  # the module may have been installed since
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - an import can raise any exception
        return sanitize(f"{name} cannot be imported: {type(error).__name__}: {error}", 200)
    return ""
