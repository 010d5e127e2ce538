"""Figures of the server, kept in this process and read in Prometheus' text format.

Nothing is imported before a page is asked for. `METRICS` is the list of what can be counted; nothing else can.
"""

from __future__ import annotations

from mcp_server.metrics.registry import (
    OTHER,
    SERIES_LIMIT,
    VALUES_LIMIT,
    Reading,
    collect,
    configure,
    count,
    enabled,
    gauge,
    gauge_function,
    observe,
    prepare,
    reset,
)
from mcp_server.metrics.sampler import Sampler
from mcp_server.metrics.table import METRICS, PROCESS_METRICS, Metric
from mcp_server.metrics.text import CONTENT_TYPE, exposition, render

__all__ = [
    "CONTENT_TYPE",
    "METRICS",
    "OTHER",
    "PROCESS_METRICS",
    "SERIES_LIMIT",
    "VALUES_LIMIT",
    "Metric",
    "Reading",
    "Sampler",
    "collect",
    "configure",
    "count",
    "enabled",
    "exposition",
    "gauge",
    "gauge_function",
    "observe",
    "prepare",
    "render",
    "reset",
]
