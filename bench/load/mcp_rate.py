"""Measure MCP calls per second over HTTP, compared with the smallest server that the SDK can make."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from bench.load.http import Connection, floor_served, served
from bench.result import Range, Result

ROUNDS: Final = 5
CALLS: Final = 600
WORKERS: Final = 8
SHARE: Final = 0.7
_META: Final = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


def calls_per_second() -> list[Result]:
    """Compare the tool `scope`, which starts no process, with a tool that returns its argument."""
    with served() as server, floor_served() as floor_port:
        ways: dict[str, tuple[int, str, str, dict[str, Any]]] = {
            "server": (server.port, server.token, "scope", {"target": ["127.0.0.1"]}),
            "floor": (floor_port, "none", "echo", {"text": "127.0.0.1"}),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(ROUNDS + 1):
            for name, way in ways.items():
                measured = asyncio.run(_rate(*way))
                if turn:
                    rates[name].append(measured)
    rate, floor = (Range.of(rates[name], "calls/s") for name in ways)
    ratio = rate.median / floor.median
    return [
        Result("MCP calls over HTTP", str(rate), f"ratio >= {SHARE:g}", ratio >= SHARE, floor=str(floor), ratio=ratio)
    ]


async def _rate(port: int, token: str, tool: str, arguments: dict[str, Any]) -> float:
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/call",
        "Mcp-Name": tool,
    }
    params = {"name": tool, "arguments": arguments, "_meta": _META}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}

    async def work() -> None:
        connection = Connection(port, token)
        for _ in range(CALLS // WORKERS):
            response = await connection.post("/mcp", body, headers)
            assert response.status == 200, response
            assert b'"isError":true' not in response.body, response
            assert b"127.0.0.1" in response.body, response
        await connection.close()

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(WORKERS)))
    return CALLS / (time.perf_counter() - started)
