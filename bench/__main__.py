"""``python -m bench`` runs every benchmark, ``python -m bench NAME …`` some; the status is 1 for a missed bound."""

from __future__ import annotations

import importlib
import sys
import time

from bench.result import Result, table

NAMES = ("cold_start", "tools_list", "call_overhead", "big_result", "memory", "flat_parse", "answer_cost")


def main(wanted: list[str]) -> int:
    """Run the benchmarks in order and print one table at the end."""
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        print(f"there is no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    results: list[Result] = []
    for name in wanted or NAMES:
        started = time.perf_counter()
        print(f"{name} …", end=" ", file=sys.stderr, flush=True)
        results += importlib.import_module(f"bench.{name}").measure()
        print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    print(table(results))
    return 0 if all(result.within for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
