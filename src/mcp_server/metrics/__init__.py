"""Metrics of this process, kept by prometheus_client and served in Prometheus' text format.

`METRICS` lists every metric. Nothing is counted, and prometheus_client is not imported, until `configure` switches
counting on. A server does that if its metrics can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from mcp_server.metrics.table import CONTENT_TYPE, METRICS, OTHER, PROCESS_METRICS, Metric, series_of_tool

if TYPE_CHECKING:
    from mcp_server.metrics.registry import Registry

__all__ = [
    "CONTENT_TYPE",
    "METRICS",
    "OTHER",
    "PROCESS_METRICS",
    "Metric",
    "configure",
    "count",
    "enabled",
    "exposition",
    "gauge",
    "gauge_function",
    "observe",
    "prepare",
    "refresh",
]

Reading = float | Mapping[str, float]
"""The result of a gauge's function: one number, or a number for each value of the gauge's only label."""

_registry: Registry | None = None
_functions: dict[str, Callable[[], Reading]] = {}


def configure(*, enabled: bool) -> None:
    """Start counting, or stop it and drop all values. A call that changes nothing keeps all values."""
    global _registry  # noqa: PLW0603 - metrics belong to the process, as they do in prometheus_client
    if not enabled:
        _registry = None
    elif _registry is None:
        from mcp_server.metrics.registry import Registry

        _registry = Registry()


def enabled() -> bool:
    """Return whether metrics are counted."""
    return _registry is not None


def count(name: str, amount: float = 1, /, **labels: str) -> None:
    """Add ``amount`` to a counter of `METRICS`.

    Raises KeyError for an unknown metric, and ValueError for labels that are not the metric's own or a negative amount.
    """
    if _registry is not None:
        _registry.count(name, amount, labels)


def observe(name: str, seconds: float, /, **labels: str) -> None:
    """Add a time to a histogram of `METRICS`. Raises KeyError and ValueError as `count` does."""
    if _registry is not None:
        _registry.observe(name, seconds, labels)


def gauge(name: str, value: float, /, **labels: str) -> None:
    """Set a gauge of `METRICS`. Raises KeyError and ValueError as `count` does."""
    if _registry is not None:
        _registry.gauge(name, value, labels)


def gauge_function(name: str, function: Callable[[], Reading]) -> None:
    """Have `refresh` set a gauge to the result of ``function``, which replaces the gauge's previous function."""
    if METRICS[name].kind != "gauge":
        raise ValueError(f"{name} is a {METRICS[name].kind}, not a gauge")
    _functions[name] = function


def refresh() -> None:
    """Call every function of `gauge_function`, on the event loop that they belong to, before the page is made."""
    for name, function in _functions.items():
        reading = function()
        if isinstance(reading, Mapping):
            (label,) = METRICS[name].labels
            for value, number in reading.items():
                gauge(name, number, **{label: value})
        else:
            gauge(name, reading)


def prepare(tools: Iterable[str]) -> None:
    """Start the counters of these tools at 0, so that Prometheus sees the first event as an increase."""
    if _registry is not None:
        for tool in tools:
            for name, values in series_of_tool(tool):
                _registry.start(name, values)


def exposition() -> bytes:
    """Return all metrics in Prometheus' text format, or nothing if counting is off. May run in any thread."""
    return b"" if _registry is None else _registry.exposition()
