"""Measure the time from the end of nmap until the client has a result of 2,048 hosts, over MCP stdio.

The hosts are those of 127.0.0.0/21, which are all this machine. The client learns the end of nmap from the kernel, and
is otherwise idle until the result arrives. The floor is to parse the XML of that scan with ElementTree, which a server
would have to do if it did not parse the output as it arrives.
"""

from __future__ import annotations

import resource
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Network
from typing import Any, Final
from xml.etree import ElementTree as ET

from bench.descendants import ProcessEnd
from bench.result import Result
from bench.stdio import MODULE, Session, argv_of_last_call, served
from bench.tokens import result_tokens

ROUNDS: Final = 9
RATIO: Final = 1.2
TOKENS: Final = 3000
HOSTS: Final = 2048
NETWORK: Final = IPv4Network("127.0.0.0/21")
_STEPS: Final = (3, 5, 7)
_PAUSE_SEC: Final = 1.0
"""Pause before each call, so that the server has ended all work on the last one."""


def measure() -> list[Result]:
    """Measure the time from the end of nmap to the result, and the cost of the result."""
    with _listeners() as ports, served(MODULE, tools_package="bench.tools") as (session, state):
        _after_nmap(session, ports)
        xml = subprocess.run(argv_of_last_call(state), stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout
        after, parsed = [], []
        for _ in range(ROUNDS):
            milliseconds, result = _after_nmap(session, ports)
            after.append(milliseconds)
            started = time.perf_counter()
            ET.fromstring(xml)  # noqa: S314 - the output of our own nmap
            parsed.append(1000 * (time.perf_counter() - started))
    tokens = result_tokens(result)
    return [
        Result.of_ratio(f"{HOSTS} hosts after nmap's end", after, parsed, "ms", RATIO),
        Result(f"result of {HOSTS} hosts", f"{tokens:,.0f} tokens", f"<= {TOKENS}", tokens <= TOKENS),
    ]


def _after_nmap(session: Session, ports: Sequence[int]) -> tuple[float, dict[str, Any]]:
    """Scan and return the milliseconds from the end of nmap to the result, and the result."""
    time.sleep(_PAUSE_SEC)
    end = ProcessEnd("nmap", below=session.process.pid)
    result = session.call("wide_nmap", target=str(NETWORK), mode="ports", ports=",".join(map(str, ports)))
    received = time.perf_counter()
    if result["structuredContent"]["up"] != HOSTS:
        raise RuntimeError(f"{result['structuredContent']['up']} of {HOSTS} hosts were found.")
    return 1000 * (received - end.at()), result


@contextmanager
def _listeners() -> Iterator[list[int]]:
    """Open three ports, on every third, fifth and seventh address: this gives eight kinds of host."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    with ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        ports = []
        for step in _STEPS:
            first = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
            ports.append(first.getsockname()[1])
            for offset in range(1 + step, HOSTS, step):
                opened.enter_context(socket.create_server((str(NETWORK[offset]), ports[-1])))
        yield ports
