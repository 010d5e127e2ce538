"""``python -m bench [NAME …]`` runs all benchmarks or some. The exit status is 1 if a bound is missed."""

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
    "result_cost",
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
        print(f"There is no benchmark {unknown[0]!r}. Benchmarks: {', '.join(NAMES)}.", file=sys.stderr)
        return 2
    results: list[Result] = []
    load = os.getloadavg()[0]
    for name in wanted or NAMES:
        started = time.perf_counter()
        print(f"{name} …", end=" ", file=sys.stderr, flush=True)
        try:
            results += importlib.import_module(f"bench.{name}").measure()
        except Exception as error:  # noqa: BLE001 - the other benchmarks still run
            traceback.print_exc()
            results.append(Result(name, "failed", type(error).__name__, within=False))
        print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    print(table(results))
    print(f"\nLoad average: {load:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores.")
    return 0 if all(result.within for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
