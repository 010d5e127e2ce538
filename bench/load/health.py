"""Whether ``/health`` stays quick while twenty scans run."""

from __future__ import annotations

import asyncio
import statistics
from typing import Final

from bench.load.clients import p99
from bench.load.http import Connection, Served, served
from bench.result import Result
from bench.stdio import ROOT

SCANS: Final = 20
RATE: Final = 200
"""Packets a second of each scan. Loopback answers at once: without a bound nmap does not wait for the network, as it
does elsewhere, but for the processor, and twenty on two cores make any server wait 12 to 28 ms at p99."""
ASKED: Final = 600
_PAUSE_SEC: Final = 0.02
BOUND_MS: Final = 10.0


def while_scans_run() -> list[Result]:
    """The p99 of ``/health`` while twenty scans of loopback are under way, each at a rate as on a network."""
    with served(TOOLS_PACKAGE="bench.load.tools", PYTHONPATH=str(ROOT), MCP_ADMISSION_MAX_RUNNING="50") as server:
        return asyncio.run(_measure(server))


async def _measure(server: Served) -> list[Result]:
    scans = [asyncio.create_task(_scan(server, number)) for number in range(SCANS)]
    connection = Connection(server.port, server.token)
    await asyncio.sleep(3)
    taken = []
    for _ in range(ASKED):
        answer = await connection.get("/health")
        assert answer.status == 200, answer.body
        taken.append(1000 * answer.seconds)
        await asyncio.sleep(_PAUSE_SEC)
    fewest = await _running(server)
    for scan in scans:
        scan.cancel()
    await asyncio.gather(*scans, return_exceptions=True)
    worst = p99(taken)
    return [
        Result(
            f"/health while {SCANS} scans run, p99",
            f"{worst:.1f} ms",
            f"<= {BOUND_MS:g} ms",
            worst <= BOUND_MS and fewest == SCANS,
            notes=(f"median {statistics.median(taken):.1f} ms; {fewest} scans were running at the end",),
        )
    ]


async def _running(server: Served) -> int:
    """How many scans run, as the server's own figures say; none has ended where it is still all of them."""
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
