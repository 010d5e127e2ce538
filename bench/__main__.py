"""``python -m bench`` runs every benchmark, ``python -m bench NAME …`` some; the status is 1 for a missed bound."""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback

from bench.result import Result, table

NAMES = (
    "cold_start",
    "tools_list",
    "call_overhead",
    "one_scan",
    "big_result",
    "memory",
    "flat_parse",
    "answer_cost",
    "policy",
    "audit",
    "spawn",
    "guard",
    "load",
)


def main(wanted: list[str]) -> int:
    """Run the benchmarks in order and print one table at the end."""
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        print(f"there is no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    results: list[Result] = []
    load = os.getloadavg()[0]
    for name in wanted or NAMES:
        started = time.perf_counter()
        print(f"{name} …", end=" ", file=sys.stderr, flush=True)
        try:
            results += importlib.import_module(f"bench.{name}").measure()
        except Exception as error:  # noqa: BLE001 - the others still have something to say
            traceback.print_exc()
            results.append(Result(name, "failed", type(error).__name__, within=False))
        print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    print(table(results))
    print(f"\nload average {load:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores")
    return 0 if all(result.within for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
