"""What a call over MCP adds to nmap: the whole road, against the very same argv run directly.

Three ways alternate: the argv alone, the argv inside the containment that the server starts it in, and the call.
The argv is the one on the decision log of the warm-up call, so that all three do the same work.
"""

from __future__ import annotations

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
from mcp_server.execution.launcher import SYSTEM_PATH, launcher_for
from mcp_server.execution.process import Limits

ROUNDS: Final = 40
WARM_UP: Final = 5
ADDED_MS: Final = 15.0
_PAUSE_SEC: Final = 0.1
"""Between measurements: the store folds a finished run behind the call, and would share the processor with the next."""


def measure() -> list[Result]:
    """The median of what is added, and the part of it that the containment is."""
    with served() as (session, state), tempfile.TemporaryDirectory() as home, _listener() as port:

        def call() -> None:
            session.call("nmap", target="127.0.0.1", mode="ports", ports=str(port), extra_args="-sT")

        call()
        argv = _last_argv(state)
        contained = launcher_for(argv[0]).wrap(argv, Limits(timeout_sec=600).bounds())
        ways: dict[str, Callable[[], Any]] = {
            "raw": lambda: _run(argv, home),
            "contained": lambda: _run(contained, home),
            "call": call,
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(WARM_UP + ROUNDS):
            for name, way in ways.items():
                time.sleep(_PAUSE_SEC)
                started = time.perf_counter()
                way()
                if turn >= WARM_UP:
                    taken[name].append(1000 * (time.perf_counter() - started))
    added = Spread.of([call - raw for call, raw in zip(taken["call"], taken["raw"], strict=True)], "ms")
    raw, inside, whole = (Spread.of(taken[name], "ms") for name in ways)
    return [
        Result(
            "a call adds to raw nmap",
            str(added),
            f"<= {ADDED_MS:g} ms",
            added.median <= ADDED_MS,
            floor=str(raw),
            ratio=whole.median / raw.median,
            notes=(
                f"call {whole}; the containment of the process is {inside.median - raw.median:.1f} ms of what is added,"
                f" the rest of the road {whole.median - inside.median:.1f} ms",
            ),
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
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
