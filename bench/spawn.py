"""Measure a process start in the sandbox: `run_process` compared with a shell that starts the program.

Both start ``true`` and alternate in one process, first as it is and then with a gigabyte in memory, because a start
must not depend on the size of the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from bench.result import Result
from mcp_server.sandbox.confine import NICENESS
from mcp_server.sandbox.containment import containment
from mcp_server.sandbox.executor import Executor
from mcp_server.sandbox.process import ProcessLimits, run_process
from mcp_server.sandbox.sandbox import Sandbox

ROUNDS: Final = 200
WARM_UP: Final = 20
RATIO: Final = 4.0
TRUE: Final = "/bin/true"
SHELL: Final = ("/usr/bin/nice", "-n", str(NICENESS), "/bin/sh", "-c", f"{TRUE}; :")
"""The floor. Like the sandbox, it starts the program through another process, and at the priority of a tool."""
_GIB: Final = 1 << 30


def measure() -> list[Result]:
    """Measure a start by a small process and by one of a gigabyte, each alternating with the shell."""
    return asyncio.run(_measure())


async def _measure() -> list[Result]:
    executor, sandbox = Executor.here(), Sandbox(reads=("/usr/share/nmap",), raw_sockets=True)

    async def ours() -> None:
        ended = await run_process((TRUE,), ProcessLimits(10), lambda _: None, executor=executor, sandbox=sandbox)
        assert ended.returncode == 0

    try:
        shell, small = await _alternate(_shell, ours)
        ballast = bytearray(b"\x01") * _GIB
        shell_large, large = await _alternate(_shell, ours)
        assert len(ballast) == _GIB
    finally:
        executor.close()
    found = containment()
    return [
        Result.of_ratio(
            "a process start in the sandbox",
            small,
            shell,
            "ms",
            RATIO,
            (f"tier {found.tier}, files confined: {found.files_confined}",),
        ),
        Result.of_ratio("a process start in the sandbox by a server of 1 GB", large, shell_large, "ms", RATIO),
    ]


async def _shell() -> None:
    process = await asyncio.create_subprocess_exec(
        *SHELL,
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
