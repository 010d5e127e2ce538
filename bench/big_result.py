"""Measure the time from the end of nmap until the client has a result of 2,048 hosts, compared with one host.

The calls are made over MCP stdio and alternate. The hosts are those of 127.0.0.0/21, which are all this machine. The
client learns the end of nmap from the kernel, and is otherwise idle until the result arrives.
"""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Network
from typing import Any, Final

from bench.descendants import ProcessEnd
from bench.result import Result
from bench.stdio import MODULE, Session, served
from bench.tokens import result_tokens

ROUNDS: Final = 9
WARM_UP: Final = 1
RATIO: Final = 3.0
TOKENS: Final = 3000
HOSTS: Final = 2048
NETWORK: Final = IPv4Network("127.0.0.0/21")
_STEPS: Final = (3, 5, 7)
_PAUSE_SEC: Final = 1.0
"""Pause before each call, so that the processor is idle when it starts."""


def measure() -> list[Result]:
    """Measure the time from the end of nmap to the result, and the cost of the result."""
    with _listeners() as ports, served(MODULE, tools_package="bench.tools") as (session, _):
        one, many = [], []
        for turn in range(WARM_UP + ROUNDS):
            short, _ = _after_nmap(session, str(NETWORK[1]), ports, hosts=1)
            long, result = _after_nmap(session, str(NETWORK), ports, hosts=HOSTS)
            if turn >= WARM_UP:
                one.append(short)
                many.append(long)
    tokens = result_tokens(result)
    return [
        Result.of_ratio(f"{HOSTS} hosts after nmap's end", many, one, "ms", RATIO),
        Result(f"result of {HOSTS} hosts", f"{tokens:,.0f} tokens", f"<= {TOKENS}", tokens <= TOKENS),
    ]


def _after_nmap(session: Session, target: str, ports: Sequence[int], hosts: int) -> tuple[float, dict[str, Any]]:
    """Scan and return the milliseconds from the end of nmap to the result, and the result."""
    time.sleep(_PAUSE_SEC)
    end = ProcessEnd("nmap", below=session.process.pid)
    result = session.call("wide_nmap", target=target, mode="ports", ports=",".join(map(str, ports)))
    received = time.perf_counter()
    if result["structuredContent"]["up"] != hosts:
        raise RuntimeError(f"{result['structuredContent']['up']} of {hosts} hosts were found.")
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
