"""Measure the time to the first ``tools/list`` response, compared with the smallest server of the SDK."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from bench.result import Result
from bench.stdio import CONSOLE_SCRIPT, FLOOR, MODULE, served

ROUNDS: Final = 11
RATIO: Final = 1.25
_REVISIONS: Final = ("2025-11-25", "2026-07-28")
_SERVERS: Final = {"floor": FLOOR, "console script": CONSOLE_SCRIPT, "python -m": MODULE}


def measure() -> list[Result]:
    """Measure both entry points with a handshake, and the console script also with revision 2026-07-28."""
    cases = [
        (name, revision)
        for revision in _REVISIONS
        for name in _SERVERS
        if not (revision != _REVISIONS[0] and name == "python -m")
    ]
    for name, revision in cases:  # the first start compiles the bytecode
        _first_response(_SERVERS[name], revision)
    milliseconds: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for _ in range(ROUNDS):
        for name, revision in cases:
            milliseconds[name, revision].append(1000 * _first_response(_SERVERS[name], revision))
    return [
        Result.of_ratio(
            f"cold start, {name}, {revision}",
            milliseconds[name, revision],
            milliseconds["floor", revision],
            "ms",
            RATIO,
        )
        for name, revision in cases
        if name != "floor"
    ]


def _first_response(argv: Sequence[str], revision: str) -> float:
    started = time.perf_counter()
    with served(argv, revision=revision) as (session, _):
        tools = session.request("tools/list")["tools"]
        seconds = time.perf_counter() - started
    if not tools:
        raise RuntimeError("The server lists no tool.")
    return seconds
