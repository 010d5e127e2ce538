"""Run two hundred clients for a minute: health, reads, short scans, refused calls and bursts at the same time.

Most clients pause between two requests, like agents. Some send without a pause, and must be rate limited.
Reads are compared with reads of the same server without other clients.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.load.http import Connection, Response, Served, served
from bench.memory import ResourceUse
from bench.result import Result

SECONDS: Final = float(os.environ.get("BENCH_LOAD_SECONDS", "60"))
CLIENTS: Final = {"health": 30, "read": 110, "scan": 6, "refused": 50, "burst": 4}
PAUSE_SEC: Final = 2.0
"""Average pause of a client between two requests, except for a burst."""
SLOWER: Final = 3.0
GROWTH: Final = 1.05
TIMEOUT_SEC: Final = 30.0
"""A request without a response after this time counts as lost. A hanging server then does not block the benchmark."""
_IDLE_READS: Final = 400
_READ_PAUSE_SEC: Final = 0.02
_RUNS: Final = 20
"""As many runs as a page has."""
_WARM_UP_SHARE: Final = 0.3

INTENDED: Final = {
    "health": {200},
    "read": {200},
    "scan": {200, 429},
    "refused": {400},
    "burst": {404, 429},
}
"""The allowed statuses of each kind of client. A scan may find all slots in use; a burst calls an unknown tool."""
_READS: Final = ("/runs?limit=20", "/tools", "/scope?target=127.0.0.1", "/")


@dataclass(frozen=True, slots=True)
class ClientMix:
    """The number of clients of each kind, the duration, and the average pause of a client between two requests."""

    clients: Mapping[str, int]
    seconds: float
    pause_sec: float


@dataclass(slots=True)
class Responses:
    """The responses to the clients of one kind; ``lost`` counts requests without a response."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The responses to each kind of client, and the resources of the server after the warm-up and at the end."""

    responses: dict[str, Responses]
    early: ResourceUse
    late: ResourceUse

    @property
    def lost(self) -> int:
        """The number of requests without a response."""
        return sum(each.lost for each in self.responses.values())

    def wrong(self) -> dict[str, dict[int, int]]:
        """Return the statuses that are not in `INTENDED`, with their number, by kind of client."""
        found = {
            kind: {status: count for status, count in each.statuses.items() if status not in INTENDED[kind]}
            for kind, each in self.responses.items()
        }
        return {kind: counts for kind, counts in found.items() if counts}

    def unanswered(self) -> list[str]:
        """Return the kinds of client without any response."""
        return [kind for kind, each in self.responses.items() if not each.statuses]


def under_load() -> list[Result]:
    """Check for unintended responses, reads more than three times slower than alone, and growing memory."""
    # All clients share one token and so the limit. It is above the rate of clients that pause, and below a burst.
    with served(MCP_RATE_LIMIT_CALLS_PER_MINUTE="2000", MCP_SERVER_MAX_CONNECTIONS="400") as server:
        return asyncio.run(_measure(server))


async def _measure(server: Served) -> list[Result]:
    idle = await _reads_alone(server)
    done = await run_load(server, ClientMix(CLIENTS, SECONDS, PAUSE_SEC))
    responses, early, late = done.responses, done.early, done.late
    wrong, lost, unanswered = done.wrong(), done.lost, done.unanswered()
    bad = bool(wrong or lost or unanswered)
    total = sum(each.statuses.total() for each in responses.values())
    reads = p99(responses["read"].seconds)
    ratio, growth = reads / idle, late.resident / early.resident
    warm = _WARM_UP_SHARE * SECONDS
    statuses = "; ".join(f"{kind} {dict(each.statuses)}" for kind, each in responses.items())
    return [
        Result(
            "responses under load",
            f"{total:,} in {SECONDS:.0f} s",
            "only intended ones",
            not bad,
            notes=(
                statuses,
                *([f"unintended: {wrong}; lost: {lost}; no response at all: {unanswered}"] if bad else []),
            ),
        ),
        Result(
            "a read under load, p99",
            f"{1000 * reads:.1f} ms",
            f"ratio <= {SLOWER:g}",
            ratio <= SLOWER,
            floor=f"{1000 * idle:.1f} ms",
            ratio=ratio,
            notes=(
                f"median {1000 * statistics.median(responses['read'].seconds):.1f} ms; the floor is without other load",
            ),
        ),
        Result(
            "memory under load",
            f"{late.resident / 1e6:.1f} MB",
            f"ratio <= {GROWTH:g}",
            growth <= GROWTH,
            floor=f"{early.resident / 1e6:.1f} MB",
            ratio=growth,
            notes=(f"the floor is after {warm:.0f} s; descriptors: {early.files} then, {late.files} at the end",),
        ),
    ]


async def _reads_alone(server: Served) -> float:
    """Return the p99 of reads without other clients, with as many runs in the store as later."""
    connection = Connection(server.port, server.token)
    for _ in range(_RUNS):
        scan = await connection.post("/tools/nmap/execute", {"target": "127.0.0.1", "ports": "1-10"})
        assert scan.status == 200, scan.body
    taken = []
    for turn in range(_IDLE_READS + 100):
        # The same pause as under load, because an immediate request would find every cache warm.
        await asyncio.sleep(_READ_PAUSE_SEC)
        taken.append((await connection.get(_READS[turn % len(_READS)])).seconds)
    del taken[:100]
    await connection.close()
    return p99(taken)


async def run_load(server: Served, mix: ClientMix) -> LoadResult:
    """Run all clients of ``mix`` at the same time until its duration is over."""
    loop = asyncio.get_running_loop()
    until = loop.time() + mix.seconds
    responses = {kind: Responses() for kind in mix.clients}
    clients = [
        asyncio.create_task(
            _client(server, kind, responses[kind], until, mix.pause_sec, random.Random(f"{kind}{number}"))  # noqa: S311
        )
        for kind, count in mix.clients.items()
        for number in range(count)
    ]
    await asyncio.sleep(_WARM_UP_SHARE * mix.seconds)
    early = ResourceUse.of(server.pid)
    await asyncio.gather(*clients)
    return LoadResult(responses, early, ResourceUse.of(server.pid))


async def _client(
    server: Served, kind: str, responses: Responses, until: float, pause_sec: float, chance: random.Random
) -> None:
    loop = asyncio.get_running_loop()
    connection = Connection(server.port, server.token)
    send = _requests(connection, chance)[kind]
    if kind != "burst":
        await asyncio.sleep(chance.uniform(0, pause_sec))
    while loop.time() < until:
        try:
            response = await asyncio.wait_for(send(), TIMEOUT_SEC)
        except (OSError, asyncio.IncompleteReadError):  # TimeoutError is an OSError
            responses.lost += 1
            await connection.close()
            continue
        responses.seconds.append(response.seconds)
        responses.statuses[response.status] += 1
        if kind != "burst":
            await asyncio.sleep(chance.uniform(0, 2 * pause_sec))
    await connection.close()


def _requests(connection: Connection, chance: random.Random) -> dict[str, Callable[[], Awaitable[Response]]]:
    def post(tool: str, **arguments: object) -> Awaitable[Response]:
        return connection.post(f"/tools/{tool}/execute", arguments)

    return {
        "health": lambda: connection.get("/health"),
        "read": lambda: connection.get(chance.choice(_READS)),
        "scan": lambda: post("nmap", target=f"127.0.0.{chance.randint(1, 250)}", ports="1-10"),
        "refused": lambda: post("nmap", target="8.8.8.8"),
        "burst": lambda: post("none", target="127.0.0.1"),
    }


def p99(values: Sequence[float]) -> float:
    """Return the 99th percentile: the smallest value that 99 of 100 do not exceed."""
    return sorted(values)[max(0, -(-99 * len(values) // 100) - 1)]
