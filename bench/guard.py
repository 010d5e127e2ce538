"""Measure guard and sandbox together in the kernel tier: a process start, and the scan of a /24.

The host is a namespace created for this, with a machine outside it (`tests.support.guarded`). A start is a run as in
the pipeline (a reading of the guard, the sandboxed program, a reading). It alternates with the floor of `bench.spawn`
in one process. The scan is ``nmap -sS`` of the segment inside the guard, compared with the same command without the
guard.
"""

from __future__ import annotations

import time
from typing import Final

from bench.result import Range, Result
from bench.spawn import SHELL, TRUE
from tests.support.guarded import Inside, World, inside, policy, world
from tests.support.processes import binary

ROUNDS: Final = 200
SCANS: Final = 7
START_RATIO: Final = 6.0
SCAN_RATIO: Final = 1.05
_NETWORK: Final = "10.99.0.0/24"
_PORT: Final = 8299


def measure() -> list[Result]:
    """Measure a process start and a scan."""
    with world() as host, inside(host, _PORT, rules=policy(_NETWORK)) as made:
        return [_spawns(made), _scans(host, made)]


def _spawns(made: Inside) -> Result:
    bare, guarded = made.ask("spawns", floor=SHELL, program=TRUE, rounds=ROUNDS)
    added = Range.of([mine - raw for mine, raw in zip(guarded, bare, strict=True)], "ms")
    notes = (f"two readings of the guard and the sandbox add {added}",)
    return Result.of_ratio("a process start under the guard", guarded, bare, "ms", START_RATIO, notes)


def _scans(host: World, made: Inside) -> Result:
    words = [
        binary("nmap"),
        "-n",
        "--privileged",
        "-sS",
        "-T4",
        "-p",
        "22,80,2222",
        "--min-rtt-timeout",
        "50ms",
        _NETWORK,
    ]
    bare, guarded = [], []
    for turn in range(SCANS + 1):
        started = time.perf_counter()
        host.run(*words)
        middle = time.perf_counter()
        ended = made.ask("run", targets=[_NETWORK], argv=words, raw=True)
        if turn:
            bare.append(middle - started)
            guarded.append(time.perf_counter() - middle)
        assert "2222/tcp open" in ended["output"], "the scan did not find the machine outside"
    return Result.of_ratio("a scan of a /24 under the guard", guarded, bare, "s", SCAN_RATIO)
