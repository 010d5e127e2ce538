"""Measure speed and memory while nmap XML of 100,000 hosts is parsed, without and with the store."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Final

from bench.result import Range, Result
from bench.stdio import ROOT, child_environment

HOSTS: Final = 100_000
ROUNDS: Final = 2
ABOVE_IDLE_MB: Final = 40.0


def measure() -> list[Result]:
    """Measure memory with and without the store, and parser speed compared with expat with empty handlers."""
    taken: dict[str, list[dict[str, float]]] = {"floor": [], "parse": []}
    for _ in range(ROUNDS):
        for way, reports in taken.items():
            reports.append(_read(way))
    stored = _read("store")
    floor, speed = (Range.of([each["mb"] / each["seconds"] for each in taken[way]], "MB/s") for way in taken)
    memory = Range.of([each["above_idle_mb"] for each in taken["parse"]], "MB")
    return [
        Result(
            f"{HOSTS:,} hosts, parser and digest",
            str(memory),
            f"< {ABOVE_IDLE_MB:g} MB above idle",
            memory.high < ABOVE_IDLE_MB,
            notes=(f"{taken['parse'][0]['mb']:.0f} MB of XML at {speed}; expat with empty handlers {floor}",),
        ),
        Result(
            f"{HOSTS:,} hosts, written to the store",
            f"{stored['above_idle_mb']:.3g} MB",
            f"< {ABOVE_IDLE_MB:g} MB above idle",
            stored["above_idle_mb"] < ABOVE_IDLE_MB,
            notes=(f"{stored['mb'] / stored['seconds']:.0f} MB/s, {HOSTS / stored['seconds']:,.0f} hosts/s",),
        ),
    ]


def _read(way: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.xml_reader", str(HOSTS), way],
        cwd=ROOT,
        env=child_environment("/nonexistent"),
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )
    report: Any = json.loads(done.stdout)
    return dict(report)
