"""The server under load over HTTP: two hundred clients, the wire's own speed, and health while scans run."""

from __future__ import annotations

from bench.load.clients import under_load
from bench.load.health import while_scans_run
from bench.load.wire import calls_per_second
from bench.result import Result


def measure() -> list[Result]:
    """Every part, one after another; about two minutes."""
    return [*under_load(), *calls_per_second(), *while_scans_run()]
