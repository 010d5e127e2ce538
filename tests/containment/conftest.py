"""Fixtures of the containment tests: the prepared lab, with a second uplink and a false name server, and the wire."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.containment import lab_scope
from tests.containment.wire import Wire, second_uplink
from tests.lab.conftest import lab as lab  # noqa: PLC0414 - pytest finds a fixture by the name in this module
from tests.lab.network.handle import Lab
from tests.lab.network.programs import uncovered

_NAME_SERVER_HOST: Final = "v6only"
"""A host of segment 1 without IPv4. It gets the resolver's address."""


@contextmanager
def false_name_server(lab: Lab) -> Iterator[None]:
    """Run the false name server at `lab_scope.RESOLVER` for the length of a block."""
    lab.run(_NAME_SERVER_HOST, ["ip", "addr", "add", f"{lab_scope.RESOLVER}/24", "dev", "eth0"])
    program = Path(__file__).with_name("false_dns.py")
    argv = lab.exec_argv(_NAME_SERVER_HOST, [sys.executable, str(program), lab_scope.RESOLVER])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=uncovered(), text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line == "ready\n", f"expected the name server to start, found {line!r}"
            yield
        finally:
            server.kill()


@pytest.fixture(scope="session")
def prepared_lab(lab: Lab) -> Iterator[Lab]:
    """The lab, prepared for the containment tests."""
    second_uplink(lab)
    with false_name_server(lab):
        yield lab


@pytest.fixture(scope="session")
def wire(prepared_lab: Lab) -> Iterator[Wire]:
    """The tap and the counters on the ports of the namespace ``scan``."""
    with Wire.tap(prepared_lab) as watched:
        yield watched
