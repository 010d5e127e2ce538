"""Measure the scan that other MCP servers for nmap were measured with: a connect scan of 1,000 TCP ports of loopback.

Two runs alternate: nmap alone with its normal output, and the call over MCP stdio. The result is counted in characters,
text and structured content together.
"""

from __future__ import annotations

import subprocess
import time
from typing import Any, Final

from bench.result import Range, Result
from bench.stdio import served
from bench.tokens import result_tokens

ROUNDS: Final = 11
ARGV: Final = ("nmap", "-n", "-sT", "-p1-1000", "127.0.0.1")
SECONDS: Final = 0.25
CHARACTERS: Final = 600
_PAUSE_SEC: Final = 0.5
"""Pause after each round, so that work of the server after a call does not affect the next one."""


def measure() -> list[Result]:
    """Measure the time of a call and the size of its result."""
    taken: dict[str, list[float]] = {"raw": [], "call": []}
    answer: dict[str, Any] = {}
    with served() as (session, _):
        for turn in range(ROUNDS + 1):
            time.sleep(_PAUSE_SEC)
            started = time.perf_counter()
            raw = subprocess.run(ARGV, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
            between = time.perf_counter()
            answer = session.call("nmap", target="127.0.0.1", mode="ports", ports="1-1000")
            if turn:  # the first call opens the store
                taken["raw"].append(1000 * (between - started))
                taken["call"].append(1000 * (time.perf_counter() - between))
    alone, call = Range.of(taken["raw"], "ms"), Range.of(taken["call"], "ms")
    characters = round(4 * result_tokens(answer))
    return [
        Result(
            "1,000 ports of loopback",
            str(call),
            f"<= {1000 * SECONDS:g} ms",
            call.median <= 1000 * SECONDS,
            floor=str(alone),
            ratio=call.median / alone.median,
        ),
        Result(
            "1,000 ports of loopback, size of the result",
            f"{characters} characters",
            f"<= {CHARACTERS}",
            characters <= CHARACTERS,
            floor=f"{len(raw)} characters",
        ),
    ]
