"""Measure the scan that other MCP servers for nmap were measured with: a connect scan of 1,000 TCP ports of loopback.

Two runs alternate: nmap alone with its normal output, and the call over MCP stdio. The result is counted in characters,
text and structured content together.
"""

from __future__ import annotations

import subprocess
import time
from typing import Any, Final

from bench.result import Result
from bench.stdio import served
from bench.tokens import result_tokens

ROUNDS: Final = 11
ARGV: Final = ("nmap", "-n", "-sT", "-p1-1000", "127.0.0.1")
RATIO: Final = 2.5
CHARACTERS: Final = 600
_PAUSE_SEC: Final = 0.5
"""Pause before each round, so that caches are as cold as between two calls of an agent."""


def measure() -> list[Result]:
    """Measure the time of a call and the size of its result."""
    taken: dict[str, list[float]] = {"raw": [], "call": []}
    result: dict[str, Any] = {}
    with served() as (session, _):
        for turn in range(ROUNDS + 1):
            time.sleep(_PAUSE_SEC)
            started = time.perf_counter()
            raw = subprocess.run(ARGV, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
            between = time.perf_counter()
            result = session.call("nmap", target="127.0.0.1", mode="ports", ports="1-1000")
            if turn:  # the first call opens the store
                taken["raw"].append(1000 * (between - started))
                taken["call"].append(1000 * (time.perf_counter() - between))
    characters = round(4 * result_tokens(result))
    return [
        Result.of_ratio("1,000 ports of loopback", taken["call"], taken["raw"], "ms", RATIO),
        Result(
            "1,000 ports of loopback, size of the result",
            f"{characters} characters",
            f"<= {CHARACTERS}",
            characters <= CHARACTERS,
            floor=f"{len(raw)} characters",
        ),
    ]
