"""Hooks for every test run."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack

import coverage
import pytest

from tests.support.fork_server import fork_server


def pytest_configure(config: pytest.Config) -> None:
    """Start the program by fork, in this process and in the workers of pytest-xdist."""
    running = ExitStack()
    running.enter_context(fork_server())
    config.add_cleanup(running.close)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measure no coverage while a test marked ``no_cover`` runs.

    Such a test repeats the same lines so often that measuring them would take longer than running them.
    """
    measured = coverage.Coverage.current() if item.get_closest_marker("no_cover") else None
    if measured is None:
        return (yield)
    measured.stop()
    try:
        return (yield)
    finally:
        measured.start()
