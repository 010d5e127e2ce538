"""Benchmarks of the server over HTTP: two hundred clients, the rate of MCP calls, and health while scans run."""

from __future__ import annotations

from bench.load.clients import under_load
from bench.load.health import while_scans_run
from bench.load.mcp_rate import calls_per_second
from bench.result import Result


def measure() -> list[Result]:
    """Run all parts; this takes about two minutes."""
    return [*under_load(), *calls_per_second(), *while_scans_run()]
