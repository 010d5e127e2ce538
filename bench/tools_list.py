"""What ``tools/list`` costs every agent that connects, in tokens of four characters."""

from __future__ import annotations

import json
from typing import Final

from bench.result import Result
from bench.stdio import served

TOKENS: Final = 1200


def measure() -> list[Result]:
    """The result of ``tools/list`` as it stands on the wire, for the built-in tools."""
    with served() as (session, _):
        tools = session.request("tools/list")["tools"]
    names = [tool["name"] for tool in tools]
    if "nmap" not in names:
        raise RuntimeError(f"nmap is not listed: {names}")
    cost = {tool["name"]: len(json.dumps(tool, separators=(",", ":"), ensure_ascii=False)) / 4 for tool in tools}
    note = f"parts: {', '.join(f'{name} {tokens:,.0f}' for name, tokens in cost.items())}"
    return [
        Result("tools/list, nmap", f"{cost['nmap']:,.0f} tokens", f"<= {TOKENS}", cost["nmap"] <= TOKENS, notes=(note,))
    ]
