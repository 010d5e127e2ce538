"""What calls meet on their way: open breakers, full queues, a rate limiter on its own; and modules the owner names."""

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


def check_breakers(board: Sequence[BreakerView]) -> Finding:
    """Which tools are left alone for a while."""
    shut = [breaker for breaker in board if breaker.state.value != "closed"]
    if not shut:
        return Finding(_OK, f"{len(board)} closed" if board else "no tool was called yet")
    detail = "; ".join(_say(breaker) for breaker in shut)
    remedy = "see why their last runs failed: mcp-network-tools runs list"
    return Finding(_DEGRADED, detail, "every other tool; what was remembered can be read", remedy)


def _say(breaker: BreakerView) -> str:
    state = breaker.state.value.replace("_", "-")
    if breaker.forced:
        return f"{breaker.name} is held {state} by an operator"
    later = f", next trial in {breaker.retry_after} s" if breaker.retry_after else ""
    return f"{breaker.name} is {state}{later}"


def check_queue(loads: Mapping[str, Load], most: int) -> Finding:
    """Whether calls wait, and for which tools another one would be refused; ``most`` is admission.max_waiting."""
    running, waiting = sum(load.running for load in loads.values()), sum(load.waiting for load in loads.values())
    detail = f"{running} running, {waiting} waiting"
    full = [tool for tool, load in loads.items() if most and load.waiting >= most]
    if full:
        detail += f"; {most} wait for each of {', '.join(full)}, and more are refused"
        return Finding(_DEGRADED, detail, "calls of other tools", "wait; the caps are in the section admission")
    return Finding(_OK, detail)


def check_rate_limit(problem: str | None) -> Finding:
    """Whether calls are counted where they should be; ``problem`` is the limiter's own word."""
    if problem is None:
        return Finding(_OK, "calls are counted")
    return Finding(_DEGRADED, problem, "everything; each server counts for itself", "see rate_limit.storage_url")


def check_dependencies(names: Sequence[str]) -> list[Finding]:
    """Whether the Python modules the owner names can be imported, by importing them."""
    missing = [(name, reason) for name in names if (reason := _not_importable(name))]
    if not missing:
        return [Finding(_OK, f"{len(names)} named, all importable" if names else "none are named")]
    remedy = "install it into the environment of this server, or correct health.dependencies"
    return [
        Finding(HealthStatus.UNHEALTHY, reason, "what does not need it", remedy, f"dependency {name}")
        for name, reason in missing
    ]


def _not_importable(name: str) -> str:
    importlib.invalidate_caches()  # it may have been installed since
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a module may raise anything while it is imported
        return sanitize(f"{name} cannot be imported: {type(error).__name__}: {error}", 200)
    return ""
