"""The conformance suites, and how many checks of each must succeed. As a program it runs them and prints a summary."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.support.mcp_node import Verdict, entry_point, run_conformance
from tests.support.mcp_wire import everything_over_http

REVISION = "2026-07-28"

_TASKS = frozenset(
    {
        "tasks-lifecycle",
        "tasks-capability-negotiation",
        "tasks-wire-fields",
        "tasks-request-state-removal",
        "tasks-mrtr-input",
        "tasks-request-headers",
        "tasks-dispatch-and-envelope",
        "tasks-status-notifications",
        "tasks-required-task-error",
        "tasks-mrtr-composition",
    }
)
"""Scenarios of an optional extension, which the protocol revision does not score."""


@dataclass(frozen=True)
class Suite:
    """One run of the suite. ``checks`` is the number of checks that succeed with the locked version."""

    name: str
    options: tuple[str, ...]
    checks: int
    leave_out: frozenset[str] = frozenset()
    may_warn: frozenset[str] = frozenset()


SUITES = (
    Suite(REVISION, ("--requirements", REVISION), checks=152, leave_out=_TASKS),
    Suite(
        "2025-11-25",
        ("--suite", "all", "--spec-version", "2025-11-25"),
        checks=81,
        # Resuming a broken stream is a SHOULD. The event store of the SDK does not know the client of a stream, so one
        # client could get the results of another. The server keeps runs by their id instead.
        may_warn=frozenset({"server-sse-polling"}),
    ),
    Suite("2025-06-18", ("--suite", "all", "--spec-version", "2025-06-18"), checks=56),
)


def scored_scenarios() -> set[str]:
    """Return the server scenarios that the protocol revision requires, from the suite's frozen list."""
    package = entry_point("conformance", "conformance").parents[1]
    requirements = yaml.safe_load((package / "requirements" / f"{REVISION}.yaml").read_text())
    return set(requirements["server"])


def run_suite(suite: Suite, port: int, output: Path) -> Verdict:
    url = f"http://127.0.0.1:{port}/mcp"
    return run_conformance(url, output, *suite.options, leave_out=suite.leave_out)


def main() -> int:
    worst = 0
    with everything_over_http() as port, tempfile.TemporaryDirectory() as folder:
        for suite in SUITES:
            verdict = run_suite(suite, port, Path(folder) / suite.name)
            counts = f"{verdict.passed} of {suite.checks} checks in {len(verdict.scenarios)} scenarios"
            print(f"{suite.name}: {counts}, {len(verdict.failures)} failed, {len(verdict.warnings)} warnings")  # noqa: T201
            for line in (*verdict.failures, *verdict.warnings):
                print(f"  {line}")  # noqa: T201
            if verdict.failures or verdict.passed < suite.checks:
                worst = 1
    return worst


if __name__ == "__main__":
    sys.exit(main())
