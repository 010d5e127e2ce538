"""From the spawn of a server to its answer to the first ``tools/list``, against the smallest server of the same SDK."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from bench.result import Result, Spread
from bench.stdio import CONSOLE_SCRIPT, FLOOR, MODULE, served

ROUNDS: Final = 11
RATIO: Final = 1.25
_REVISIONS: Final = ("2025-11-25", "2026-07-28")
_SERVERS: Final = {"floor": FLOOR, "console script": CONSOLE_SCRIPT, "python -m": MODULE}


def measure() -> list[Result]:
    """Both of our entry points in the handshake era, the console script in the newer one too."""
    cases = [
        (name, revision)
        for revision in _REVISIONS
        for name in _SERVERS
        if not (revision != _REVISIONS[0] and name == "python -m")
    ]
    for name, revision in cases:  # the first start compiles, as an installer does
        _first_answer(_SERVERS[name], revision)
    seconds: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for _ in range(ROUNDS):
        for name, revision in cases:
            seconds[name, revision].append(_first_answer(_SERVERS[name], revision))
    spreads = {case: Spread.of([1000 * value for value in values], "ms") for case, values in seconds.items()}
    results = []
    for (name, revision), spread in spreads.items():
        if name != "floor":
            floor = spreads["floor", revision]
            ratio = spread.median / floor.median
            results.append(
                Result(
                    f"cold start, {name}, {revision}",
                    str(spread),
                    f"ratio <= {RATIO}",
                    ratio <= RATIO,
                    floor=str(floor),
                    ratio=ratio,
                )
            )
    return results


def _first_answer(argv: Sequence[str], revision: str) -> float:
    started = time.perf_counter()
    with served(argv, revision=revision) as (session, _):
        tools = session.request("tools/list")["tools"]
        seconds = time.perf_counter() - started
    if not tools:
        raise RuntimeError("the server lists no tool")
    return seconds
