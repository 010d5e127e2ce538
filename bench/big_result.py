"""How long after the end of nmap a result of 2,048 hosts is in the client's hands, over MCP stdio.

The hosts are those of 127.0.0.0/21, which are all this machine. The moment of nmap's end is taken from the
kernel by the client, which has nothing else to do until the answer comes.
"""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Network
from typing import Any, Final

from bench.descendants import EndOf
from bench.result import Result, Spread
from bench.stdio import MODULE, Session, served
from bench.tokens import answer_tokens

ROUNDS: Final = 9
WARM_UP: Final = 1
AFTER_MS: Final = 20.0
TOKENS: Final = 3000
HOSTS: Final = 2048
NETWORK: Final = IPv4Network("127.0.0.0/21")
_STEPS: Final = (3, 5, 7)
_PAUSE_SEC: Final = 1.0
"""Between calls: the store folds what the last one saw, in its one lane."""


def measure() -> list[Result]:
    """The time from the end of nmap to the answer, and what that answer costs."""
    with _listeners() as ports, served(MODULE, tools_package="bench.tools") as (session, _):
        taken = [_after_nmap(session, ports) for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
    after = Spread.of([1000 * seconds for seconds, _ in taken], "ms")
    answer = taken[-1][1]
    tokens = answer_tokens(answer)
    return [
        Result(f"{HOSTS} hosts after nmap's end", str(after), f"<= {AFTER_MS:g} ms", after.median <= AFTER_MS),
        Result(f"answer of {HOSTS} hosts", f"{tokens:,.0f} tokens", f"<= {TOKENS}", tokens <= TOKENS),
    ]


def _after_nmap(session: Session, ports: Sequence[int]) -> tuple[float, dict[str, Any]]:
    time.sleep(_PAUSE_SEC)
    end = EndOf("nmap", below=session.process.pid)
    answer = session.call("wide_nmap", target=str(NETWORK), mode="ports", ports=",".join(map(str, ports)))
    answered = time.perf_counter()
    if answer["structuredContent"]["up"] != HOSTS:
        raise RuntimeError(f"{answer['structuredContent']['up']} of {HOSTS} hosts were found")
    return answered - end.at(), answer


@contextmanager
def _listeners() -> Iterator[list[int]]:
    """Three ports, each open on every third, fifth or seventh address: eight kinds of host."""
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
