"""Starting the lying name server in the lab."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.containment import ground
from tests.lab.network.handle import Lab
from tests.lab.network.programs import uncovered

_EXECUTOR = "v6only"
"""A host of segment 1 without IPv4, which gets the resolver's address."""


@contextmanager
def lying_resolver(lab: Lab) -> Iterator[None]:
    """Answer questions to `ground.RESOLVER` for as long as the block runs."""
    lab.run(_EXECUTOR, ["ip", "addr", "add", f"{ground.RESOLVER}/24", "dev", "eth0"])
    argv = lab.exec_argv(_EXECUTOR, [sys.executable, str(Path(__file__).with_name("liar.py")), ground.RESOLVER])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=uncovered(), text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield
        finally:
            server.kill()
