"""Hooks for every test run."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.support.fork_server import fork_server


def pytest_configure(config: pytest.Config) -> None:
    """Start the program by fork, in this process and in the workers of pytest-xdist."""
    running = ExitStack()
    running.enter_context(fork_server())
    config.add_cleanup(running.close)
