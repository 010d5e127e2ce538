"""The numbers themselves. Counting is two look-ups and an addition under one lock, and imports nothing.

prometheus_client takes 50 ms to import, which neither a start nor a first call may pay for (docs/decisions/0017):
the numbers are kept here, and it is asked only when somebody wants the page.
"""

from __future__ import annotations

import logging
import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from mcp_server.metrics.table import METRICS, Kind, Metric, series_of_tool
from mcp_server.model.untrusted import sanitize

logger = logging.getLogger(__name__)

VALUES_LIMIT: Final = 200
"""Different values of one label of one metric; further ones are counted as ``other``."""
SERIES_LIMIT: Final = 2000
"""Different sets of label values of one metric; all labels of a further one read ``other``."""
LABEL_CHARS: Final = 120
OTHER: Final = "other"

Labels = tuple[str, ...]
Reading = float | Mapping[str, float] | Mapping[Labels, float] | None
"""What a function of `gauge_function` gives: a number, numbers by label value (or by all of them), or nothing now."""


@dataclass(slots=True)
class Histogram:
    """One series of a histogram: how many observations fell under each bound but not the one before, and their sum."""

    counts: list[int]
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with its present series, label values in the order of its labels."""

    name: str
    metric: Metric
    numbers: dict[Labels, float] = field(default_factory=dict)
    histograms: dict[Labels, Histogram] = field(default_factory=dict)


@dataclass(slots=True)
class _Table:
    """The series of one metric."""

    name: str
    metric: Metric
    numbers: dict[Labels, float] = field(default_factory=dict)
    histograms: dict[Labels, Histogram] = field(default_factory=dict)
    seen: tuple[set[str], ...] = ()

    def __post_init__(self) -> None:
        self.seen = tuple(set() for _ in self.metric.labels)
        for values in self.metric.known or ((),) * (not self.metric.labels and self.metric.kind != "gauge"):
            self.begin(self.series(values))

    def begin(self, series: Labels) -> None:
        """Show a series at 0, if it is not there yet."""
        if self.metric.kind == "histogram":
            self.histograms.setdefault(series, Histogram([0] * (len(self.metric.buckets) + 1)))
        else:
            self.numbers.setdefault(series, 0.0)

    def series(self, values: Iterable[object]) -> Labels:
        """The label values as they are shown: without anything active in them, and bounded in number."""
        shown = tuple(sanitize(str(value), LABEL_CHARS) for value in values)
        if shown in self.numbers or shown in self.histograms:
            return shown
        if len(self.numbers) + len(self.histograms) >= SERIES_LIMIT:
            return (OTHER,) * len(shown)
        kept = []
        for value, seen in zip(shown, self.seen, strict=True):
            known = value in seen or len(seen) < VALUES_LIMIT
            if known:
                seen.add(value)
            kept.append(value if known else OTHER)
        return tuple(kept)


class _Registry:
    """All numbers of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.enabled = True
        self.forget()

    def forget(self) -> None:
        self.tables = {name: _Table(name, metric) for name, metric in METRICS.items()}
        # The way from a call's own words to a series; only words that were shown as they are, so it stays small.
        self.known: dict[tuple[object, ...], Labels] = {}
        self.functions: dict[tuple[str, Labels], Callable[[], Reading]] = {}

    def find(self, kind: Kind, name: str, labels: Mapping[str, object]) -> tuple[_Table, Labels]:
        """The table and series of a call; the lock is held."""
        table = self.tables[name]
        key = (name, kind, *labels.items())
        series = self.known.get(key)
        if series is None:
            if table.metric.kind != kind:
                raise ValueError(f"{name} is a {table.metric.kind}, not a {kind}")
            if labels.keys() != set(table.metric.labels):
                raise ValueError(f"{name} has the labels {table.metric.labels}, not {tuple(labels)}")
            given = tuple(labels[label] for label in table.metric.labels)
            series = table.series(given)
            table.begin(series)
            if series == given:
                self.known[key] = series
        return table, series


_registry = _Registry()


def count(name: str, amount: float = 1, /, **labels: str) -> None:
    """Add to a counter of `METRICS`.

    Raises KeyError for a metric that there is not, ValueError for other labels than its own or an amount below 0:
    mistakes of ours, which a test meets.
    """
    if not _registry.enabled:
        return
    number = _finite(name, amount)
    with _registry.lock:
        table, series = _registry.find("counter", name, labels)
        table.numbers[series] += number


def observe(name: str, seconds: float, /, **labels: str) -> None:
    """Put a time of 0 seconds or more into a histogram of `METRICS`; raises as `count` does."""
    if not _registry.enabled:
        return
    number = _finite(name, seconds)
    with _registry.lock:
        table, series = _registry.find("histogram", name, labels)
        spread = table.histograms[series]
        spread.counts[bisect_left(table.metric.buckets, number)] += 1
        spread.total += number


def gauge(name: str, value: float, /, **labels: str) -> None:
    """Set a gauge of `METRICS` to any number; raises as `count` does."""
    if not _registry.enabled:
        return
    number = float(value)
    with _registry.lock:
        table, series = _registry.find("gauge", name, labels)
        table.numbers[series] = number


def gauge_function(name: str, fn: Callable[[], Reading], /, **labels: str) -> None:
    """Ask ``fn`` for a gauge whenever the page is read.

    ``fn`` is called where `collect` is, and is quick. With ``labels`` it gives the number of that series; without,
    for a gauge that has labels, numbers by label value (by a tuple of them where there are several). None, or an
    exception, which is logged, leaves the series out. A later function for the same series takes the place.
    """
    with _registry.lock:
        metric = _registry.tables[name].metric
        if metric.kind != "gauge" or not labels.keys() <= set(metric.labels):
            raise ValueError(f"{name} is a {metric.kind} with the labels {metric.labels}")
        key = (name, tuple(str(labels[label]) for label in metric.labels if label in labels))
        _registry.functions[key] = fn


def prepare(tools: Iterable[str]) -> None:
    """Begin the counters of these tools at 0, so that the first of everything is seen as a rise."""
    if not _registry.enabled:
        return
    with _registry.lock:
        for tool in tools:
            for name, values in series_of_tool(tool):
                table = _registry.tables[name]
                table.begin(table.series(values))


def configure(*, enabled: bool) -> None:
    """Count from here on, or count nothing; what was counted stays."""
    _registry.enabled = enabled


def enabled() -> bool:
    """Whether anything is counted."""
    return _registry.enabled


def reset() -> None:
    """Forget every number and function, as a new process does; for tests."""
    with _registry.lock:
        _registry.enabled = True
        _registry.forget()


def collect() -> list[Family]:
    """A copy of every number, all of one moment, and what the functions of gauges give now."""
    readings = {key: _ask(key[0], fn) for key, fn in list(_registry.functions.items())}
    with _registry.lock:
        for (name, given), reading in readings.items():
            _take(_registry.tables[name], given, reading)
        return [
            Family(
                name,
                table.metric,
                dict(table.numbers),
                {series: Histogram(list(spread.counts), spread.total) for series, spread in table.histograms.items()},
            )
            for name, table in _registry.tables.items()
        ]


def _ask(name: str, fn: Callable[[], Reading]) -> Reading:
    try:
        return fn()
    except Exception:
        # One reader that fails must not cost the owner all the others.
        logger.exception("metrics.not_read metric=%s", name)
        return None


def _take(table: _Table, given: Labels, reading: Reading) -> None:
    """Have a table say what its function gave; series that it gave before and no longer does are gone."""
    labels = table.metric.labels
    if isinstance(reading, Mapping):
        found = {key if isinstance(key, tuple) else (key,): value for key, value in reading.items()}
    else:
        found = {} if reading is None else {given: reading}
    if len(given) < len(labels):
        table.numbers.clear()
    else:
        table.numbers.pop(given, None)
    for values, value in found.items():
        table.numbers[table.series(values)] = float(value)


def _finite(name: str, value: float) -> float:
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} takes 0 or more, not {value}")
    return number
