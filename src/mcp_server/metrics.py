"""Figures of the server in Prometheus' text format. Nothing is imported before a figure is counted or asked for."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The media type of `exposition`."""

COUNTERS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "mcp_guard_drops": ("Packets of tools that the guard dropped, by its rule", ("rule",)),
    "mcp_guard_failures": ("Times the guard was found gone or changed", ()),
}
"""Each counter's name without ``_total``, what it counts, and its labels. `docs/metrics.md` has a line for each."""


def count(name: str, amount: float = 1, **labels: str) -> None:
    """Add to a counter of `COUNTERS`; label values must come from a bounded set of our own."""
    counter = _counters()[name]
    (counter.labels(**labels) if labels else counter).inc(amount)


def exposition() -> bytes:
    """Every figure as a scraper reads it."""
    from prometheus_client import generate_latest

    _counters()
    return generate_latest(_registry())


@functools.cache
def _registry() -> CollectorRegistry:
    from prometheus_client import CollectorRegistry

    return CollectorRegistry()


@functools.cache
def _counters() -> dict[str, Counter]:
    from prometheus_client import Counter

    return {
        name: Counter(name, documentation, labels, registry=_registry())
        for name, (documentation, labels) in COUNTERS.items()
    }
