"""Checks of the limits of calls (breakers, queues, rate limiter) and of the modules that the operator names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mcp_server.health import CheckOutcome, HealthStatus
from mcp_server.model.untrusted import sanitize

if TYPE_CHECKING:
    from mcp_server.limits.admission import Load
    from mcp_server.limits.circuit_breaker import BreakerView

_OK, _DEGRADED = HealthStatus.HEALTHY, HealthStatus.DEGRADED


def check_breakers(breakers: Sequence[BreakerView]) -> CheckOutcome:
    """Check which tools have a circuit breaker that is not closed."""
    refusing = [breaker for breaker in breakers if breaker.state.value != "closed"]
    if not refusing:
        return CheckOutcome(_OK, f"{len(breakers)} closed" if breakers else "no tool was called yet")
    detail = "; ".join(_describe(breaker) for breaker in refusing)
    remedy = "find out why the last runs failed: mcp-network-tools runs list"
    return CheckOutcome(_DEGRADED, detail, "every other tool; stored runs can be read", remedy)


def _describe(breaker: BreakerView) -> str:
    state = breaker.state.value.replace("_", "-")
    if breaker.forced:
        return f"{breaker.name} is held {state} by an operator"
    later = f", next trial in {breaker.retry_after} s" if breaker.retry_after else ""
    return f"{breaker.name} is {state}{later}"


def check_queue(loads: Mapping[str, Load], most: int) -> CheckOutcome:
    """Check for which tools the queue is full. ``most`` is admission.max_waiting, and 0 means no queue."""
    running, waiting = sum(load.running for load in loads.values()), sum(load.waiting for load in loads.values())
    detail = f"{running} running, {waiting} waiting"
    full = [tool for tool, load in loads.items() if most and load.waiting >= most]
    if full:
        detail += f"; {most} calls wait for each of {', '.join(full)}, and further calls are refused"
        return CheckOutcome(
            _DEGRADED, detail, "calls of other tools", "wait, or raise the limits in the section admission"
        )
    return CheckOutcome(_OK, detail)


def check_rate_limit(problem: str | None) -> CheckOutcome:
    """Check that calls are counted in the configured storage. ``problem`` is the report of the rate limiter."""
    if problem is None:
        return CheckOutcome(_OK, "calls are counted")
    return CheckOutcome(
        _DEGRADED, problem, "everything; each server counts its own calls", "check rate_limit.storage_url"
    )


def check_dependencies(names: Sequence[str]) -> list[CheckOutcome]:
    """Check that the Python modules in ``health.dependencies`` can be imported, by importing them."""
    missing = [(name, reason) for name in names if (reason := _not_importable(name))]
    if not missing:
        return [CheckOutcome(_OK, f"{len(names)} named, all can be imported" if names else "none are named")]
    remedy = "install it in the environment of this server, or correct health.dependencies"
    return [
        CheckOutcome(HealthStatus.UNHEALTHY, reason, "everything that does not need it", remedy, f"dependency {name}")
        for name, reason in missing
    ]


def _not_importable(name: str) -> str:
    importlib.invalidate_caches()  # it may have been installed since the last check
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a module may raise anything while it is imported
        return sanitize(f"{name} cannot be imported: {type(error).__name__}: {error}", 200)
    return ""
