"""What a call over MCP adds to nmap: the whole road, against the very same argv run directly.

Three ways alternate: the argv alone, the argv as the server starts it (contained, bounded, read as it writes), and
the call.
The argv is the one on the decision log of the warm-up call, so that all three do the same work.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench.result import Result, Spread
from bench.stdio import served
from mcp_server.sandbox.confine import SYSTEM_PATH
from mcp_server.sandbox.process import ProcessLimits, run_process

ROUNDS: Final = 40
WARM_UP: Final = 5
ADDED_MS: Final = 15.0
_PAUSE_SEC: Final = 0.5
"""After each round: the store folds a finished run behind the call, and would share the processor with what follows."""


def measure() -> list[Result]:
    """The median of what is added, and the part of it that starting the process as the server does is."""
    with (
        served() as (session, state),
        tempfile.TemporaryDirectory() as home,
        _listener() as port,
        asyncio.Runner() as loop,
    ):

        def call() -> None:
            session.call("nmap", target="127.0.0.1", mode="ports", ports=str(port), extra_args="-sT")

        call()
        argv = _last_argv(state)
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
    added = Spread.of([call - raw for call, raw in zip(taken["call"], taken["raw"], strict=True)], "ms")
    raw, inside, whole = (Spread.of(taken[name], "ms") for name in ways)
    parts = f"process {inside.median - raw.median:.1f} ms, road and wire {whole.median - inside.median:.1f} ms"
    return [
        Result(
            "a call adds to raw nmap",
            str(added),
            f"<= {ADDED_MS:g} ms",
            added.median <= ADDED_MS,
            floor=str(raw),
            ratio=whole.median / raw.median,
            notes=(f"call {whole}; of what is added, {parts}",),
        )
    ]


def _last_argv(state: Path) -> tuple[str, ...]:
    records = [json.loads(line) for line in (state / "audit.jsonl").read_text().splitlines()]
    return tuple([record for record in records if record["event"] == "decision"][-1]["argv"])


def _run(argv: Sequence[str], home: str) -> None:
    environment = {"PATH": SYSTEM_PATH, "LC_ALL": "C", "HOME": home}
    subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, env=environment, cwd=home, check=True)


@contextmanager
def _listener() -> Iterator[int]:
    # Nobody accepts: the queue must hold a connection of every round, or nmap would wait for the kernel to answer.
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:
        yield server.getsockname()[1]
