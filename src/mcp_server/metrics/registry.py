"""The metrics of `METRICS` as prometheus_client holds them. This module adds limits for the values of their labels.

Importing prometheus_client takes 25 ms. Only a server whose metrics can be read imports this module
(docs/decisions/0028-metrics-and-logs.md).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Final, cast

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from mcp_server.metrics.table import METRICS, OTHER, Kind
from mcp_server.model.untrusted import sanitize

VALUES_LIMIT: Final = 200
"""Distinct values of one label of one metric. Further values are counted as ``other``."""
SERIES_LIMIT: Final = 2000
"""Distinct sets of label values of one metric. A further set is counted with ``other`` for every label."""
LABEL_CHARS: Final = 120
"""Characters of a label value; a longer value is cut."""

Labels = tuple[str, ...]
AnyMetric = Counter | Gauge | Histogram

# Without this, every counter and histogram has a second series that no rule or dashboard reads.
disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client has no annotation here


class Registry:
    """All metrics of this process. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._metrics: dict[str, AnyMetric] = {}
        self._series: dict[str, set[Labels]] = {name: set() for name in METRICS}
        self._values: dict[tuple[str, str], set[str]] = {}
        # Series by the arguments of a call. It holds only label values that are shown unchanged, so it stays bounded.
        self._children: dict[tuple[object, ...], AnyMetric] = {}
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        for name, metric in METRICS.items():
            # A gauge without labels is added when it is set. Before that it would read 0, which nothing has measured.
            if metric.labels or metric.kind != "gauge":
                self._metrics[name] = self._make(name)
            for values in metric.known:
                self.start(name, values)

    def start(self, name: str, values: Labels) -> None:
        """Show the series of a metric with these label values, at 0 if it is new."""
        with self._lock:
            self._child(name, values)

    def count(self, name: str, amount: float, labels: Mapping[str, object]) -> None:
        """Add to a counter; see `mcp_server.metrics.count`."""
        number = _not_negative(name, amount)
        cast("Counter", self._find("counter", name, labels)).inc(number)

    def observe(self, name: str, seconds: float, labels: Mapping[str, object]) -> None:
        """Add an observation to a histogram; see `mcp_server.metrics.observe`."""
        number = _not_negative(name, seconds)
        cast("Histogram", self._find("histogram", name, labels)).observe(number)

    def gauge(self, name: str, value: float, labels: Mapping[str, object]) -> None:
        """Set a gauge; see `mcp_server.metrics.gauge`."""
        cast("Gauge", self._find("gauge", name, labels)).set(value)

    def exposition(self) -> bytes:
        """Return every metric in Prometheus' text format."""
        return generate_latest(self._registry)

    def _find(self, kind: Kind, name: str, labels: Mapping[str, object]) -> AnyMetric:
        key = (name, kind, *labels.items())
        child = self._children.get(key)
        if child is None:
            metric = METRICS[name]
            if metric.kind != kind:
                raise ValueError(f"{name} is a {metric.kind}, not a {kind}")
            if labels.keys() != set(metric.labels):
                raise ValueError(f"{name} has the labels {metric.labels}, not {tuple(labels)}")
            given = tuple(str(labels[label]) for label in metric.labels)
            with self._lock:
                values, child = self._child(name, given)
                if values == given:
                    self._children[key] = child
        return child

    def _child(self, name: str, given: Labels) -> tuple[Labels, AnyMetric]:
        """Return the series for these label values, and the values it is shown with. The lock is held."""
        values = self._bounded(name, tuple(sanitize(value, LABEL_CHARS) for value in given))
        self._series[name].add(values)
        metric = self._metrics.get(name)
        if metric is None:
            metric = self._metrics[name] = self._make(name)
        return values, metric.labels(*values) if values else metric

    def _bounded(self, name: str, values: Labels) -> Labels:
        series = self._series[name]
        if values in series:
            return values
        if len(series) >= SERIES_LIMIT:
            return (OTHER,) * len(values)
        kept = []
        for label, value in zip(METRICS[name].labels, values, strict=True):
            seen = self._values.setdefault((name, label), set())
            if len(seen) < VALUES_LIMIT:
                seen.add(value)
            kept.append(value if value in seen else OTHER)
        return tuple(kept)

    def _make(self, name: str) -> AnyMetric:
        metric = METRICS[name]
        if metric.kind == "histogram":
            return Histogram(name, metric.help, metric.labels, registry=self._registry, buckets=metric.buckets)
        kind = Counter if metric.kind == "counter" else Gauge
        return kind(name, metric.help, metric.labels, registry=self._registry)


def _not_negative(name: str, value: float) -> float:
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} takes 0 or more, not {value}")
    return number
