"""Measure what the sandbox adds to a process start: `run_process` compared with a plain asyncio subprocess.

Both start ``true`` and alternate in one process, first as it is and then with a gigabyte in memory, because a start
must not depend on the size of the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from bench.result import Range, Result
from mcp_server.sandbox.containment import containment
from mcp_server.sandbox.executor import Executor
from mcp_server.sandbox.process import ProcessLimits, run_process
from mcp_server.sandbox.sandbox import Sandbox

ROUNDS: Final = 200
WARM_UP: Final = 20
ADDED_MS: Final = 4.0
GROWTH_MS: Final = 1.0
_TRUE: Final = "/bin/true"
_GIB: Final = 1 << 30


def measure() -> list[Result]:
    """Measure what the sandbox adds, and what a server of a gigabyte adds to that."""
    return asyncio.run(_measure())


async def _measure() -> list[Result]:
    executor, sandbox = Executor.here(), Sandbox(reads=("/usr/share/nmap",), raw_sockets=True)

    async def ours() -> None:
        ended = await run_process((_TRUE,), ProcessLimits(10), lambda _: None, executor=executor, sandbox=sandbox)
        assert ended.returncode == 0

    try:
        bare, small = await _alternate(_bare, ours)
        ballast = bytearray(b"\x01") * _GIB
        bare_large, large = await _alternate(_bare, ours)
        assert len(ballast) == _GIB
    finally:
        executor.close()
    added = Range.of([mine - raw for mine, raw in zip(small, bare, strict=True)], "ms")
    raw, whole, heavy = (Range.of(values, "ms") for values in (bare, small, large))
    found = containment()
    return [
        Result(
            "the sandbox adds to a process start",
            str(added),
            f"<= {ADDED_MS:g} ms",
            added.median <= ADDED_MS,
            floor=str(raw),
            ratio=whole.median / raw.median,
            notes=(f"run_process {whole}; tier {found.tier}, files confined: {found.files_confined}",),
        ),
        Result(
            "a process start by a server of 1 GB",
            str(heavy),
            f"<= {GROWTH_MS:g} ms more",
            heavy.median - whole.median <= GROWTH_MS,
            floor=str(whole),
            ratio=heavy.median / whole.median,
            notes=(f"a plain asyncio subprocess then takes {Range.of(bare_large, 'ms')}",),
        ),
    ]


async def _bare() -> None:
    process = await asyncio.create_subprocess_exec(
        _TRUE,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    await process.communicate()
    assert process.returncode == 0


async def _alternate(*ways: Callable[[], Awaitable[Any]]) -> list[list[float]]:
    """Run the functions in turns and return the milliseconds of each."""
    taken: list[list[float]] = [[] for _ in ways]
    for turn in range(WARM_UP + ROUNDS):
        for way, values in zip(ways, taken, strict=True):
            started = time.perf_counter()
            await way()
            if turn >= WARM_UP:
                values.append(1000 * (time.perf_counter() - started))
    return taken
