"""100,000 hosts of nmap's XML through the parser, and on into the store: megabytes a second, and memory above idle."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Final

from bench.result import Result, Spread
from bench.stdio import ROOT, child_environment

HOSTS: Final = 100_000
ROUNDS: Final = 2
ABOVE_IDLE_MB: Final = 40.0


def measure() -> list[Result]:
    """Memory with and without the store, and the speed of the parser against expat with empty handlers."""
    taken: dict[str, list[dict[str, float]]] = {"floor": [], "parse": []}
    for _ in range(ROUNDS):
        for way, reports in taken.items():
            reports.append(_read(way))
    kept = _read("keep")
    floor, speed = (Spread.of([each["mb"] / each["seconds"] for each in taken[way]], "MB/s") for way in taken)
    memory = Spread.of([each["above_idle_mb"] for each in taken["parse"]], "MB")
    return [
        Result(
            f"{HOSTS:,} hosts, parser and digest",
            str(memory),
            f"< {ABOVE_IDLE_MB:g} MB above idle",
            memory.high < ABOVE_IDLE_MB,
            notes=(f"{taken['parse'][0]['mb']:.0f} MB of XML at {speed}; expat with empty handlers {floor}",),
        ),
        Result(
            f"{HOSTS:,} hosts, kept in the store",
            f"{kept['above_idle_mb']:.3g} MB",
            f"< {ABOVE_IDLE_MB:g} MB above idle",
            kept["above_idle_mb"] < ABOVE_IDLE_MB,
            notes=(f"{kept['mb'] / kept['seconds']:.0f} MB/s, {HOSTS / kept['seconds']:,.0f} hosts/s",),
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
