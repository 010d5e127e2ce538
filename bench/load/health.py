"""Check that ``/health`` stays fast while twenty scans run.

The floor is the smallest server of the same framework. Its requests alternate with those to ``/health``, so that both
wait for the processor in the same way.
"""

from __future__ import annotations

import asyncio
from typing import Final

from bench.load.clients import p99
from bench.load.http import Connection, Served, floor_served, served
from bench.result import Range, Result
from bench.stdio import ROOT

SCANS: Final = 20
RATE: Final = 200
"""Packets per second of each scan. Loopback responds at once, so without a limit nmap would wait for the processor and
not for the network. Twenty such scans on two cores make any server wait 12 to 28 ms at p99."""
REQUESTS: Final = 600
_PAUSE_SEC: Final = 0.02
RATIO: Final = 3.0


def while_scans_run() -> list[Result]:
    """Measure the p99 of ``/health`` while twenty scans of loopback run, each at the rate of a scan on a network."""
    with (
        served(TOOLS_PACKAGE="bench.load.tools", PYTHONPATH=str(ROOT), MCP_ADMISSION_MAX_RUNNING="50") as server,
        floor_served() as floor_port,
    ):
        return asyncio.run(_measure(server, floor_port))


async def _measure(server: Served, floor_port: int) -> list[Result]:
    scans = [asyncio.create_task(_scan(server, number)) for number in range(SCANS)]
    health, floor = Connection(server.port, server.token), Connection(floor_port, "none")
    await asyncio.sleep(3)
    taken, alone = [], []
    for _ in range(REQUESTS):
        response = await health.get("/health")
        assert response.status == 200, response.body
        taken.append(1000 * response.seconds)
        await asyncio.sleep(_PAUSE_SEC)
        response = await floor.get("/none")
        assert response.status == 404, response.body
        alone.append(1000 * response.seconds)
        await asyncio.sleep(_PAUSE_SEC)
    running = await _running(server)
    for scan in scans:
        scan.cancel()
    await asyncio.gather(*scans, return_exceptions=True)
    worst, least = p99(taken), p99(alone)
    return [
        Result(
            f"/health while {SCANS} scans run, p99",
            f"{worst:.1f} ms",
            f"ratio <= {RATIO:g}",
            worst <= RATIO * least and running == SCANS,
            floor=f"{least:.1f} ms",
            ratio=worst / least,
            notes=(f"all {Range.of(taken, 'ms')}; floor {Range.of(alone, 'ms')}; {running} scans ran at the end",),
        )
    ]


async def _running(server: Served) -> int:
    """Return the number of running scans, from the metrics of the server."""
    page = (await Connection(server.port, server.token).get("/metrics")).body.decode()
    line = next(line for line in page.splitlines() if line.startswith('mcp_tool_active{tool="many"}'))
    return int(float(line.split()[-1]))


async def _scan(server: Served, number: int) -> None:
    connection = Connection(server.port, server.token)
    target = f"127.0.{number}.0/24"
    await connection.post(
        "/tools/many/execute",
        {"target": target, "ports": "1-20000", "extra_args": f"--max-rate {RATE}", "timeout_sec": 300},
    )
