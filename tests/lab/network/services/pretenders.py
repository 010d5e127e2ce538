"""Services that no package provides, from `tests.lab.network.peers.fakes`."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tests.lab.network.daemons import Daemon
from tests.lab.network.fleet import FLEET_PORTS
from tests.lab.network.truth import Truth

_TARPIT_PORT = 9999  # the firewall of the tarpit redirects every connection here


def pretender_daemons(truth: Truth) -> Iterable[Daemon]:
    """Yield the hostile host, the tarpit, and the fleet if there is one."""
    yield _fake("hostile", "evil1", tuple(truth["evil1"].open_ports("tcp")))
    yield _fake("tarpit", "tarpit", (_TARPIT_PORT,))
    if truth.fleet:
        yield _fake("fleet", "fleet", FLEET_PORTS)


def _fake(kind: str, namespace: str, ports: tuple[int, ...]) -> Daemon:
    argv = [sys.executable, "-S", "-m", "tests.lab.network.peers.fakes", kind, *(str(port) for port in ports)]
    return Daemon(f"fake-{kind}", namespace, argv, [("tcp", port) for port in ports])
