"""How the server is: checks that run side by side, what they found, and for how long that counts.

`HealthCheckManager` knows no check of its own: `mcp_server.server.checks` registers what this project looks at.
"""

from __future__ import annotations

from mcp_server.health.background import LoopLag, Threaded
from mcp_server.health.manager import HISTORY, WAIT_SEC, HealthCheckManager, log_changes
from mcp_server.health.model import (
    Change,
    Finding,
    HealthCheckPriority,
    HealthCheckResult,
    HealthStatus,
    SystemHealth,
    changes,
    gauges,
    health_change,
    overall,
)

__all__ = [
    "HISTORY",
    "WAIT_SEC",
    "Change",
    "Finding",
    "HealthCheckManager",
    "HealthCheckPriority",
    "HealthCheckResult",
    "HealthStatus",
    "LoopLag",
    "SystemHealth",
    "Threaded",
    "changes",
    "gauges",
    "health_change",
    "log_changes",
    "overall",
]
