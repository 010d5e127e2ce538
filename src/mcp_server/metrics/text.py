"""The numbers in Prometheus' text format, written by prometheus_client, which is imported here and nowhere before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from mcp_server.metrics.registry import Family, collect

if TYPE_CHECKING:
    from prometheus_client import Metric as ClientMetric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The media type of `exposition`."""


class _PrometheusCollector:
    """What prometheus_client writes out: our families, then what it reads of this process itself."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[ClientMetric]:
        from prometheus_client import ProcessCollector

        yield from map(_client_metric, self._families)
        yield from ProcessCollector(registry=None).collect()


def render(families: Iterable[Family]) -> bytes:
    """The page of these families and of the process's own use; 50 ms at first, so call it in a thread."""
    from prometheus_client import generate_latest

    return generate_latest(_PrometheusCollector(families))


def exposition() -> bytes:
    """Every figure as a scraper reads it."""
    return render(collect())


def _client_metric(family: Family) -> ClientMetric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    name, metric = family.name, family.metric
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(name, metric.help, labels=metric.labels)
        bounds = [*map(str, metric.buckets), "+Inf"]
        for series, spread in family.histograms.items():
            histogram.add_metric(series, list(zip(bounds, accumulate(spread.counts), strict=True)), spread.total)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    numbers = kind(name, metric.help, labels=metric.labels)
    for series, number in family.numbers.items():
        numbers.add_metric(series, number)
    return numbers
