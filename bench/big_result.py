"""How long after the end of nmap a result of 2,048 hosts is in the client's hands, over MCP stdio.

The hosts are those of 127.0.0.0/21, which are all this machine. The moment of nmap's end is taken from the
kernel by the client, which has nothing else to do until the answer comes.
"""

from __future__ import annotations

import json
import time
from typing import Any, Final

from bench.descendants import EndOf
from bench.result import Result, Spread
from bench.stdio import MODULE, Session, served

ROUNDS: Final = 9
WARM_UP: Final = 1
AFTER_MS: Final = 20.0
TOKENS: Final = 3000
HOSTS: Final = 2048
NETWORK: Final = "127.0.0.0/21"


def measure() -> list[Result]:
    """The time from the end of nmap to the answer, and what that answer costs."""
    with served(MODULE, tools_package="bench.tools") as (session, _):
        taken = [_after_nmap(session) for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
    after = Spread.of([1000 * seconds for seconds, _ in taken], "ms")
    answer = taken[-1][1]
    tokens = answer_tokens(answer)
    return [
        Result(f"{HOSTS} hosts after nmap's end", str(after), f"<= {AFTER_MS:g} ms", after.median <= AFTER_MS),
        Result(f"answer of {HOSTS} alike hosts", f"{tokens:,.0f} tokens", f"<= {TOKENS}", tokens <= TOKENS),
    ]


def answer_tokens(result: dict[str, Any]) -> float:
    """What a tool result costs, text and structure together, at four characters a token."""
    structure = json.dumps(result["structuredContent"], separators=(",", ":"), ensure_ascii=False)
    return (len(structure) + sum(len(block["text"]) for block in result["content"])) / 4


def _after_nmap(session: Session) -> tuple[float, dict[str, Any]]:
    end = EndOf("nmap", below=session.process.pid)
    answer = session.call("wide_nmap", target=NETWORK, mode="ports", ports="1-3")
    answered = time.perf_counter()
    if answer["structuredContent"]["up"] != HOSTS:
        raise RuntimeError(f"{answer['structuredContent']['up']} of {HOSTS} hosts were found")
    return answered - end.at(), answer
