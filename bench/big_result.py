"""Measure the time from the end of nmap until the client has a result of 2,048 hosts, over MCP stdio.

The hosts are those of 127.0.0.0/21, which are all this machine. The client learns the end of nmap from the kernel, and
is otherwise idle until the result arrives.
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
from bench.result import Range, Result
from bench.stdio import MODULE, Session, served
from bench.tokens import result_tokens

ROUNDS: Final = 9
WARM_UP: Final = 1
AFTER_MS: Final = 20.0
TOKENS: Final = 3000
HOSTS: Final = 2048
NETWORK: Final = IPv4Network("127.0.0.0/21")
_STEPS: Final = (3, 5, 7)
_PAUSE_SEC: Final = 1.0
"""Pause between calls, so that work of the server after a call does not affect the next one."""


def measure() -> list[Result]:
    """Measure the time from the end of nmap to the result, and the cost of the result."""
    with _listeners() as ports, served(MODULE, tools_package="bench.tools") as (session, _):
        taken = [_after_nmap(session, ports) for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
    after = Range.of([1000 * seconds for seconds, _ in taken], "ms")
    answer = taken[-1][1]
    tokens = result_tokens(answer)
    return [
        Result(f"{HOSTS} hosts after nmap's end", str(after), f"<= {AFTER_MS:g} ms", after.median <= AFTER_MS),
        Result(f"result of {HOSTS} hosts", f"{tokens:,.0f} tokens", f"<= {TOKENS}", tokens <= TOKENS),
    ]


def _after_nmap(session: Session, ports: Sequence[int]) -> tuple[float, dict[str, Any]]:
    time.sleep(_PAUSE_SEC)
    end = ProcessEnd("nmap", below=session.process.pid)
    answer = session.call("wide_nmap", target=str(NETWORK), mode="ports", ports=",".join(map(str, ports)))
    answered = time.perf_counter()
    if answer["structuredContent"]["up"] != HOSTS:
        raise RuntimeError(f"{answer['structuredContent']['up']} of {HOSTS} hosts were found")
    return answered - end.at(), answer


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
