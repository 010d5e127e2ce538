"""The official conformance suite, on the interfaces and middleware of this project."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.suites import REVISION, SUITES, Suite, run_suite, scored_scenarios
from tests.support.mcp_wire import everything_over_http


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with everything_over_http() as number:
        yield number


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_all_checks_of_the_suite_succeed(suite: Suite, port: int, tmp_path: Path) -> None:
    verdict = run_suite(suite, port, tmp_path)
    assert verdict.failures == []
    assert [line for line in verdict.warnings if line.partition(":")[0] not in suite.may_warn] == []
    assert verdict.passed >= suite.checks, "fewer checks ran than before"
    if suite.name == REVISION:
        assert scored_scenarios() <= verdict.scenarios
