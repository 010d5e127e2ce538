"""Metrics of the test's own process: start them empty, and read the page as a scraper does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client.parser import text_string_to_metric_families

from mcp_server import metrics

Sample = tuple[str, tuple[tuple[str, str], ...]]


@contextmanager
def counting() -> Iterator[None]:
    """Count metrics from 0 inside the block. After it, nothing is counted."""
    metrics.configure(enabled=False)
    metrics.configure(enabled=True)
    try:
        yield
    finally:
        metrics.configure(enabled=False)


def samples() -> dict[Sample, float]:
    """Return every sample of the page by its name and sorted labels."""
    metrics.refresh()
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def sample(name: str, /, **labels: str) -> float | None:
    """Return one sample, or None if the page has no such series."""
    return samples().get((name, tuple(sorted(labels.items()))))


def series(name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """Return all samples of this name by the values of ``labels``, in that order."""
    return {
        tuple(dict(found)[label] for label in labels): number
        for (sample_name, found), number in samples().items()
        if sample_name == name
    }
