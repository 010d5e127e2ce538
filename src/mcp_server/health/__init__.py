"""Health of the server: checks that run concurrently, their results, and how long a result may be used.

`HealthCheckManager` contains no check itself. `mcp_server.server.checks` registers the checks of this project.
"""

from __future__ import annotations

from mcp_server.health.background import LoopLag, Threaded
from mcp_server.health.manager import HISTORY, WAIT_SEC, HealthCheckManager, log_changes
from mcp_server.health.model import (
    CheckOutcome,
    HealthCheckPriority,
    HealthCheckResult,
    HealthStatus,
    StatusChange,
    SystemHealth,
    changes,
    gauges,
    health_change,
    overall,
)

__all__ = [
    "HISTORY",
    "WAIT_SEC",
    "CheckOutcome",
    "HealthCheckManager",
    "HealthCheckPriority",
    "HealthCheckResult",
    "HealthStatus",
    "LoopLag",
    "StatusChange",
    "SystemHealth",
    "Threaded",
    "changes",
    "gauges",
    "health_change",
    "log_changes",
    "overall",
]
