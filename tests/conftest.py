"""What every test run needs."""

from __future__ import annotations

import pytest

from tests.support.fork_server import fork_server


def pytest_configure(config: pytest.Config) -> None:
    """Start the program by fork, in this process and in the workers of pytest-xdist."""
    running = fork_server()
    running.__enter__()
    config.add_cleanup(lambda: running.__exit__(None, None, None))
