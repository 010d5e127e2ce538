"""Measure the cost of ``tools/list``, which every agent reads, in tokens of four characters."""

from __future__ import annotations

from typing import Final

from bench.result import Result
from bench.stdio import served
from bench.tokens import json_tokens

TOKENS: Final = 1000


def measure() -> list[Result]:
    """Measure the result of ``tools/list`` as if nmap were the only tool."""
    with served() as (session, _):
        result = session.request("tools/list")
    nmap = [tool for tool in result["tools"] if tool["name"] == "nmap"]
    if not nmap:
        raise RuntimeError("The server does not list nmap.")
    tokens = json_tokens(result | {"tools": nmap})
    parts = {key: json_tokens(value) for key, value in nmap[0].items()}
    note = ", ".join(f"{key} {cost:,.0f}" for key, cost in parts.items() if cost >= 10)
    return [Result("tools/list, nmap alone", f"{tokens:,.0f} tokens", f"<= {TOKENS}", tokens <= TOKENS, notes=(note,))]
