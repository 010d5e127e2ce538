"""Measure a call over MCP, compared with the same nmap argv run directly.

Three runs alternate: the argv alone, the argv as the server starts it (in the sandbox, with limits, read as it writes),
and the call. The argv is that of the warm-up call on the audit log, so that all three do the same work.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from bench.result import Range, Result
from bench.stdio import argv_of_last_call, served
from mcp_server.sandbox.confine import SYSTEM_PATH
from mcp_server.sandbox.process import ProcessLimits, run_process

ROUNDS: Final = 40
WARM_UP: Final = 5
RATIO: Final = 2.5
_PAUSE_SEC: Final = 0.5
"""Pause before each round, so that caches are as cold as between two calls of an agent."""


def measure() -> list[Result]:
    """Measure a call, and the part of its overhead that is the start of the process."""
    with (
        served() as (session, state),
        tempfile.TemporaryDirectory() as home,
        _listener() as port,
        asyncio.Runner() as loop,
    ):

        def call() -> None:
            session.call("nmap", target="127.0.0.1", mode="ports", ports=str(port), extra_args="-sT")

        call()
        argv = argv_of_last_call(state)
        ways: dict[str, Callable[[], Any]] = {
            "raw": lambda: _run(argv, home),
            "contained": lambda: loop.run(run_process(argv, ProcessLimits(timeout_sec=600), lambda _: None)),
            "call": call,
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(WARM_UP + ROUNDS):
            time.sleep(_PAUSE_SEC)
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                if turn >= WARM_UP:
                    taken[name].append(1000 * (time.perf_counter() - started))
    added = Range.of([call - raw for call, raw in zip(taken["call"], taken["raw"], strict=True)], "ms")
    raw, inside, whole = (Range.of(taken[name], "ms") for name in ways)
    parts = f"process {inside.median - raw.median:.1f} ms, pipeline and protocol {whole.median - inside.median:.1f} ms"
    notes = (f"the call adds {added}: {parts}",)
    return [Result.of_ratio("a call, one port of loopback", taken["call"], taken["raw"], "ms", RATIO, notes)]


def _run(argv: Sequence[str], home: str) -> None:
    environment = {"PATH": SYSTEM_PATH, "LC_ALL": "C", "HOME": home}
    subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, env=environment, cwd=home, check=True)


@contextmanager
def _listener() -> Iterator[int]:
    # Connections are not accepted, so the queue must have space for one per round. Otherwise nmap would wait.
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:
        yield server.getsockname()[1]
